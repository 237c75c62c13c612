//! What can be changed: which sources are read.
//!
//! The view never writes; the writing is [`SourceDesk`]'s, each time by one guarded transaction.

use async_graphql::{Context, Error, ErrorExtensions as _, ID, Json, Object, Result};
use nexus_common::{
    model::SourceId,
    sources::{SourceDesk, SourceError, Written, document::SourceDocument},
};

use super::{
    operation::{Operation, refused},
    pipeline::Source,
};
use crate::{auth::Scope, rest, web::ApiError};

/// Everything that can be changed. Needs a token with the scope `write`, where tokens are needed
pub struct Mutation;

/// Everything that can be changed. Needs a token with the scope `write`, where tokens are needed
#[Object]
impl Mutation {
    /// Asks for a DCGM CSV file to be read: the first streamer that finds it cuts it into shards,
    /// which all streamers share
    async fn register_source(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "A name that no source had before: letters, digits, `.`, `_`, `-`, `:`")]
        id: ID,
        #[graphql(desc = "Where streamers find the file: an absolute path, or an http(s) URL")]
        path: String,
        #[graphql(
            desc = "Replay it in time: 1 as it was recorded, 10 ten times as fast, from 0.001 to 100000; as fast as possible if not given"
        )]
        replay_speed: Option<f64>,
        #[graphql(desc = "Begin again at its end, for ever, with time moving on", default = false)]
        looped: bool,
    ) -> Result<Source> {
        let (operation, id) = begin(ctx, &id)?;
        // Anything beyond the range stays beyond it.
        let speed_milli = replay_speed.map(|speed| (speed * 1000.0).round() as u64);
        let desk = SourceDesk::new(operation.app.view.etcd().clone());
        let written = desk.register(&id, &path, speed_milli, looped).await.map_err(told)?;
        tracing::info!(source = %id, path, "a source was asked for");
        Ok(seen(operation, &id, &written).await)
    }

    /// Makes a source what is asked for: creates it, or changes what may change while it is read
    async fn apply_source(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Its name: letters, digits, `.`, `_`, `-`, `:`")] id: ID,
        #[graphql(
            desc = "Exactly one of `csv`, `simulate`, `scrape`, `nvml` with what it takes, as in a file of sources: `{scrape: {targets: [{url: \"http://dgx-001:9400/metrics\"}], interval: \"15s\"}}`"
        )]
        source: Json<serde_json::Value>,
    ) -> Result<Source> {
        let (operation, id) = begin(ctx, &id)?;
        let document: Result<SourceDocument, _> = serde_json::from_value(source.0);
        let field = |reason: String| SourceError::Field { field: "source", reason };
        let document = document.map_err(|error| told(field(error.to_string())))?;
        let wanted = document.wanted().map_err(told)?;
        let desk = SourceDesk::new(operation.app.view.etcd().clone());
        let applied = desk.apply(&id, &wanted).await.map_err(told)?;
        tracing::info!(source = %id, ?applied, "a source was applied");
        let written = desk.get(&id).await.map_err(told)?;
        Ok(seen(operation, &id, &written).await)
    }

    /// Stops the reading of a source after the message in hand. What was read stays
    async fn pause_source(&self, ctx: &Context<'_>, id: ID) -> Result<Source> {
        set_paused(ctx, &id, true).await
    }

    /// Lets the reading of a paused source go on where it stopped
    async fn resume_source(&self, ctx: &Context<'_>, id: ID) -> Result<Source> {
        set_paused(ctx, &id, false).await
    }

    /// Ends the reading of a source for good. What was read stays. The answer is the source as it
    /// was
    async fn withdraw_source(&self, ctx: &Context<'_>, id: ID) -> Result<Source> {
        let (operation, id) = begin(ctx, &id)?;
        let desk = SourceDesk::new(operation.app.view.etcd().clone());
        let written = desk.withdraw(&id).await.map_err(told)?;
        tracing::info!(source = %id, "a source was withdrawn");
        Ok(seen(operation, &id, &written).await)
    }
}

async fn set_paused(ctx: &Context<'_>, id: &ID, paused: bool) -> Result<Source> {
    let (operation, id) = begin(ctx, id)?;
    let desk = SourceDesk::new(operation.app.view.etcd().clone());
    let written = desk.set_paused(&id, paused).await.map_err(told)?;
    tracing::info!(source = %id, paused, "a source was paused or resumed");
    Ok(seen(operation, &id, &written).await)
}

/// Whether it may be done at all, and to what.
fn begin<'a>(ctx: &Context<'a>, id: &ID) -> Result<(&'a Operation, SourceId)> {
    let operation = ctx.data::<Operation>()?;
    operation.allows(Scope::Write)?;
    let parsed = id.parse::<SourceId>().map_err(|error| field("id", error.to_string()))?;
    Ok((operation, parsed))
}

/// An error that names the argument that is wrong.
fn field(name: &'static str, reason: String) -> Error {
    Error::new(format!("{name}: {reason}")).extend_with(|_, extensions| {
        extensions.set("code", "bad-parameter");
        extensions.set("parameter", name);
    })
}

fn told(error: SourceError) -> Error {
    match error {
        SourceError::Field { field: name, reason } => field(name, reason),
        error => refused(ApiError::from(error)),
    }
}

/// The source as it was written, once the view has that, too.
async fn seen(operation: &Operation, id: &SourceId, written: &Written) -> Source {
    let now = rest::seen(&operation.app, written).await;
    Source::of(id, &written.source, now.as_ref().unwrap_or(&operation.snapshot))
}
