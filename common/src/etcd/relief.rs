//! Room for an etcd that has run out of it.
//!
//! Once the space quota is used up, etcd raises an alarm and takes nothing but deletes until
//! somebody makes room and takes the alarm back. What fills it is mostly history: revisions that
//! nobody needs, and pages that were freed but still count.

use std::time::Duration;

use etcd_client::{AlarmAction, AlarmOptions, AlarmType, Client, CompactionOptions};

use super::{client::Etcd, error::Error, members::within};

/// How long compacting or defragmenting one member may take: some seconds a GiB.
const WORK_WITHIN: Duration = Duration::from_secs(60);

impl Etcd {
    /// Whether etcd refuses writes because its space is used up.
    ///
    /// # Errors
    /// When etcd does not answer or refuses to tell.
    pub async fn is_out_of_space(&self) -> Result<bool, Error> {
        let ask = |client: &Client| {
            let mut client = client.maintenance_client();
            async move { client.status().await }
        };
        let status = self.members().ask_client("ask for etcd's alarms", ask).await?;
        Ok(status.errors().iter().any(|alarm| alarm.contains("NOSPACE")))
    }

    /// Forgets history, gives freed pages back, member by member, and takes the alarm back. In
    /// this order: an alarm that is taken back before there is room comes again at once.
    ///
    /// Readers at older revisions have to begin again. Safe to repeat, and for several at once.
    ///
    /// # Errors
    /// What kept the alarm from being taken back; a member that is away does not.
    pub async fn make_room(&self) -> Result<(), Error> {
        let revision = self.revision().await?;
        let mut client = self.members().client()?;
        let options = CompactionOptions::new().with_physical();
        let compacted = client.compact(revision, Some(options));
        match within(WORK_WITHIN, "compact etcd", compacted).await {
            Err(error) if !error.is_compacted() => return Err(error),
            _ => {}
        }
        for mut member in self.members().clients() {
            let defragmented = member.defragment();
            if let Err(error) = within(WORK_WITHIN, "defragment a member", defragmented).await {
                tracing::warn!(%error, "going on with the other members");
            }
        }
        let after = self.config().request_timeout;
        let alarms = client.alarm(AlarmAction::Get, AlarmType::Nospace, None);
        for alarm in within(after, "list etcd's alarms", alarms).await?.alarms() {
            // Without the member it would be answered, and nothing done.
            let mut options = AlarmOptions::new();
            options.with_member(alarm.member_id());
            let mut client = client.clone();
            let taken_back =
                client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(options));
            within(after, "take back etcd's alarm", taken_back).await?;
        }
        Ok(())
    }
}
