//! What an operation may ask for, decided before anything is validated or run. Pure.
//!
//! [`scan`] reads the text once, token by token, and stops at the first limit: what is hostile
//! costs no more than its first few hundred tokens. [`weigh`] then walks the parsed document,
//! fragments included, and counts the values an answer may hold.

use std::collections::{BTreeMap, BTreeSet};

use async_graphql::{
    Name, Number, Value, Variables,
    parser::types::{ExecutableDocument, Field, OperationDefinition, Selection, SelectionSet},
};

use crate::view::Snapshot;

/// Longest text of a query, in bytes: GraphiQL's own questions have 2 KiB.
pub const QUERY_BYTES_MAX: usize = 64 << 10;
/// Most tokens (words, numbers, texts, punctuation) of a query: parsing takes about 1 µs each.
pub const TOKENS_MAX: usize = 5_000;
/// Deepest selection, in levels of braces: introspection by tools is 15 deep.
pub const DEPTH_MAX: usize = 20;
/// Deepest nesting of brackets in arguments: what is parsed recursively.
const NESTING_MAX: usize = 20;
/// Most fields under another name.
pub const ALIASES_MAX: usize = 100;
/// Most directives.
pub const DIRECTIVES_MAX: usize = 50;
/// Most values an answer may hold, as [`weigh`] counts them: 247 GPUs with 100 points of a time
/// and two metrics each; about 20 MiB of JSON.
pub const COST_MAX: u64 = 200_000;
/// Points of `telemetry` unless asked otherwise.
pub const POINTS_DEFAULT: u64 = 100;
/// Entries of a connection unless asked otherwise.
pub const FIRST_DEFAULT: u64 = 100;

/// What looking up telemetry costs whatever it returns: blocks are fetched and decoded.
const LOOKUP_COST: u64 = 20;
/// What the audit costs: it reads every key there is.
const AUDIT_COST: u64 = 10_000;

/// A limit that an operation is beyond.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {found}, the maximum is {maximum}{advice}")]
pub struct Beyond {
    /// Which limit.
    pub what: &'static str,
    /// What was found.
    pub found: String,
    /// What is allowed.
    pub maximum: u64,
    advice: &'static str,
}

impl Beyond {
    fn new(what: &'static str, found: impl Into<String>, maximum: usize) -> Self {
        Self { what, found: found.into(), maximum: maximum as u64, advice: "" }
    }

    fn counted(what: &'static str, found: usize, maximum: usize) -> Self {
        Self::new(what, format!("at least {found} found"), maximum)
    }
}

/// Checks a query's text: its size, and how many tokens, levels, aliases and directives it has.
///
/// # Errors
/// The first limit it is beyond.
pub fn scan(query: &str) -> Result<(), Beyond> {
    if query.len() > QUERY_BYTES_MAX {
        return Err(Beyond::new("bytes of the query", query.len().to_string(), QUERY_BYTES_MAX));
    }
    let (mut tokens, mut aliases, mut directives) = (0, 0, 0);
    // Braces outside of arguments select; everything between parentheses is arguments.
    let (mut depth, mut parens, mut nesting) = (0_usize, 0_usize, 0_usize);
    for token in Tokens(query.as_bytes()) {
        tokens += 1;
        match token {
            b'{' if parens == 0 => depth += 1,
            b'}' if parens == 0 => depth = depth.saturating_sub(1),
            b'(' => parens += 1,
            b')' => parens = parens.saturating_sub(1),
            b'[' | b'{' => nesting += 1,
            b']' | b'}' => nesting = nesting.saturating_sub(1),
            b':' if parens == 0 => aliases += 1,
            b'@' => directives += 1,
            _ => {}
        }
        if depth > DEPTH_MAX {
            return Err(Beyond::counted("depth", depth, DEPTH_MAX));
        }
        if nesting > NESTING_MAX || parens > NESTING_MAX {
            return Err(Beyond::counted("nesting of arguments", nesting.max(parens), NESTING_MAX));
        }
        if aliases > ALIASES_MAX {
            return Err(Beyond::counted("aliases", aliases, ALIASES_MAX));
        }
        if directives > DIRECTIVES_MAX {
            return Err(Beyond::counted("directives", directives, DIRECTIVES_MAX));
        }
        if tokens > TOKENS_MAX {
            return Err(Beyond::counted("tokens", tokens, TOKENS_MAX));
        }
    }
    Ok(())
}

/// Tokens by their first byte. Texts and comments are passed over as the grammar has them.
struct Tokens<'a>(&'a [u8]);

impl Tokens<'_> {
    fn skip(&mut self, bytes: usize) {
        self.0 = self.0.get(bytes..).unwrap_or_default();
    }

    fn skip_while(&mut self, of: impl Fn(u8) -> bool) {
        let length = self.0.iter().take_while(|b| of(**b)).count();
        self.skip(length);
    }

    /// Behind the next closing quotes that are not escaped.
    fn skip_text(&mut self) {
        let block = self.0.starts_with(b"\"\"\"");
        let quotes: &[u8] = if block { b"\"\"\"" } else { b"\"" };
        self.skip(quotes.len());
        while let Some(byte) = self.0.first() {
            if self.0.starts_with(quotes) {
                return self.skip(quotes.len());
            }
            let escaped = if block { self.0.starts_with(b"\\\"\"\"") } else { *byte == b'\\' };
            self.skip(if !escaped {
                1
            } else if block {
                4
            } else {
                2
            });
        }
    }
}

impl Iterator for Tokens<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        loop {
            let first = *self.0.first()?;
            match first {
                b' ' | b'\t' | b'\n' | b'\r' | b',' | 0xef | 0xbb | 0xbf => self.skip(1),
                b'#' => self.skip_while(|b| b != b'\n' && b != b'\r'),
                b'"' => {
                    self.skip_text();
                    return Some(first);
                }
                b'.' => {
                    self.skip_while(|b| b == b'.');
                    return Some(first);
                }
                _ if is_word(first) => {
                    self.skip_while(is_word);
                    return Some(first);
                }
                _ => {
                    self.skip(1);
                    return Some(first);
                }
            }
        }
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

/// How many entries lists have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    clusters: u64,
    hosts: u64,
    hosts_of_cluster: u64,
    gpus: u64,
    gpus_of_host: u64,
    sources: u64,
}

impl Sizes {
    /// The sizes at one revision; of nested lists the largest.
    pub fn of(snapshot: &Snapshot) -> Self {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let hosts = || snapshot.clusters.values().map(|c| c.hosts.len());
        let gpus = || snapshot.hosts().map(|(_, _, host)| host.gpus.len());
        Self {
            clusters: count(snapshot.clusters.len()),
            hosts: count(hosts().sum()),
            hosts_of_cluster: count(hosts().max().unwrap_or(0)),
            gpus: count(gpus().sum()),
            gpus_of_host: count(gpus().max().unwrap_or(0)),
            sources: count(snapshot.sources.len()),
        }
    }
}

/// What a selection is of, as far as it matters for how long its lists are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Within {
    Root,
    Cluster,
    Host,
    Gpu,
    Schema,
}

/// What an operation may cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weight {
    /// Values an answer may hold.
    pub cost: u64,
    /// Levels of selections.
    pub depth: usize,
}

/// Weighs every operation of a document, fragments unfolded.
///
/// # Errors
/// When one costs too much or is too deep, or a fragment contains itself.
pub fn weigh(
    document: &ExecutableDocument,
    variables: &Variables,
    sizes: &Sizes,
) -> Result<Weight, Beyond> {
    let mut heaviest = Weight::default();
    for (_, operation) in document.operations.iter() {
        let mut scales = Scales {
            document,
            operation: &operation.node,
            variables,
            sizes,
            known: BTreeMap::new(),
            open: BTreeSet::new(),
        };
        let weight = scales.selection(&operation.node.selection_set.node, Within::Root)?;
        heaviest.cost = heaviest.cost.max(weight.cost);
        heaviest.depth = heaviest.depth.max(weight.depth);
    }
    if heaviest.depth > DEPTH_MAX {
        return Err(Beyond::counted("depth", heaviest.depth, DEPTH_MAX));
    }
    if heaviest.cost > COST_MAX {
        let found = format!("the answer may hold {} values", heaviest.cost);
        let advice = "; ask for fewer points, entries or fields";
        return Err(Beyond { advice, maximum: COST_MAX, ..Beyond::new("cost", found, 0) });
    }
    Ok(heaviest)
}

struct Scales<'a> {
    document: &'a ExecutableDocument,
    operation: &'a OperationDefinition,
    variables: &'a Variables,
    sizes: &'a Sizes,
    /// Fragments are weighed once each, however often they are spread.
    known: BTreeMap<(&'a str, Within), Weight>,
    open: BTreeSet<&'a str>,
}

impl<'a> Scales<'a> {
    fn selection(&mut self, set: &'a SelectionSet, within: Within) -> Result<Weight, Beyond> {
        let mut weight = Weight::default();
        for item in &set.items {
            let of_item = match &item.node {
                Selection::Field(field) => self.field(&field.node, within)?,
                Selection::InlineFragment(inline) => {
                    self.selection(&inline.node.selection_set.node, within)?
                }
                Selection::FragmentSpread(spread) => {
                    self.fragment(&spread.node.fragment_name.node, within)?
                }
            };
            // Also what selects nothing is walked through.
            weight.cost = weight.cost.saturating_add(of_item.cost.max(1));
            weight.depth = weight.depth.max(of_item.depth);
        }
        Ok(weight)
    }

    fn fragment(&mut self, name: &'a Name, within: Within) -> Result<Weight, Beyond> {
        if let Some(weight) = self.known.get(&(name.as_str(), within)) {
            return Ok(*weight);
        }
        // One that is not there is told by validation.
        let Some(fragment) = self.document.fragments.get(name) else {
            return Ok(Weight::default());
        };
        if !self.open.insert(name.as_str()) {
            let found = format!("{name} contains itself");
            return Err(Beyond::new("levels of one fragment in itself", found, 0));
        }
        let weight = self.selection(&fragment.node.selection_set.node, within)?;
        self.open.remove(name.as_str());
        self.known.insert((name.as_str(), within), weight);
        Ok(weight)
    }

    fn field(&mut self, field: &'a Field, within: Within) -> Result<Weight, Beyond> {
        let name = field.name.node.as_str();
        let inside = match name {
            "__schema" | "__type" => Within::Schema,
            _ if within == Within::Schema => Within::Schema,
            "cluster" | "clusters" => Within::Cluster,
            "host" | "hosts" | "hostsConnection" => Within::Host,
            "gpu" | "gpus" | "gpusConnection" => Within::Gpu,
            _ => within,
        };
        let children = self.selection(&field.selection_set.node, inside)?;
        let (fixed, entries) = self.entries(field, name, within);
        let each = children.cost.saturating_add(1);
        let cost = entries.saturating_mul(each).saturating_add(fixed);
        Ok(Weight {
            cost,
            depth: children.depth + usize::from(children.depth > 0 || has_children(field)),
        })
    }

    /// What a field costs by itself, and how many entries it may have.
    fn entries(&self, field: &Field, name: &str, within: Within) -> (u64, u64) {
        let sizes = self.sizes;
        // An entry more than none: an empty list is a value, too.
        let list = |size: u64| (1, self.wanted(field).map_or(size, |wanted| wanted.min(size)));
        match (within, name) {
            // Above what our schema has on average.
            (Within::Schema, "types") => (0, 60),
            (Within::Schema, "fields" | "directives") => (0, 8),
            (Within::Schema, "args" | "inputFields" | "enumValues" | "locations") => (0, 3),
            (Within::Schema, "possibleTypes" | "interfaces") => (0, 2),
            (Within::Schema, _) => (0, 1),
            (_, "telemetry" | "telemetryConnection") => {
                (LOOKUP_COST, self.wanted(field).unwrap_or(POINTS_DEFAULT))
            }
            (_, "clusters") => list(sizes.clusters),
            (Within::Cluster, "hosts" | "hostsConnection") => list(sizes.hosts_of_cluster),
            (_, "hosts" | "hostsConnection") => list(sizes.hosts),
            (Within::Host, "gpus" | "gpusConnection") => list(sizes.gpus_of_host),
            (_, "gpus" | "gpusConnection") => list(sizes.gpus),
            (_, "sources") => list(sizes.sources),
            (_, "audit") => (AUDIT_COST, 1),
            _ => (0, 1),
        }
    }

    /// `limit` or `first`, if it is given.
    fn wanted(&self, field: &Field) -> Option<u64> {
        let given = |name: &str| {
            let value = field.get_argument(name)?.node.clone();
            match value.into_const_with(|name| self.variable(&name).ok_or(())) {
                Ok(Value::Number(number)) => Some(whole(&number)),
                _ => None,
            }
        };
        given("limit").or_else(|| given("first"))
    }

    /// What was given for a variable, or else stands for it.
    fn variable(&self, name: &Name) -> Option<Value> {
        let mut all = self.operation.variable_definitions.iter();
        let default = all.find(|d| d.node.name.node == *name)?.node.default_value.as_ref();
        self.variables.get(name).or_else(|| default.map(|value| &value.node)).cloned()
    }
}

/// What is negative asks for nothing, and is refused as an argument.
fn whole(number: &Number) -> u64 {
    let rounded = || number.as_f64().map_or(0, |n| n as u64);
    number.as_u64().unwrap_or_else(rounded)
}

fn has_children(field: &Field) -> bool {
    !field.selection_set.node.items.is_empty()
}

#[cfg(test)]
mod tests {
    use async_graphql::parser::parse_query;

    use super::*;

    const SIZES: Sizes = Sizes {
        clusters: 1,
        hosts: 31,
        hosts_of_cluster: 31,
        gpus: 247,
        gpus_of_host: 8,
        sources: 2,
    };

    #[test]
    fn the_text_is_refused_at_the_first_limit_it_is_beyond() {
        let check = |query: String, expected: Option<&str>| {
            let said = scan(&query).err().map(|beyond| beyond.to_string());
            assert_eq!(said.as_deref(), expected, "{}", &query[..query.len().min(80)]);
        };
        let nested = |levels: usize| format!("{}a{}", "{a".repeat(levels), "}".repeat(levels));
        check(nested(20), None);
        check(nested(21), Some("depth: at least 21 found, the maximum is 20"));
        check(nested(10_000), Some("depth: at least 21 found, the maximum is 20"));
        let aliased = |count: usize| format!("{{{}}}", "a:b ".repeat(count));
        check(aliased(100), None);
        check(aliased(10_000), Some("aliases: at least 101 found, the maximum is 100"));
        let directed = |count: usize| format!("{{a{}}}", "@b".repeat(count));
        check(directed(50), None);
        check(directed(20_000), Some("directives: at least 51 found, the maximum is 50"));
        let listed =
            |levels: usize| format!("{{a(b:{}{})}}", "[".repeat(levels), "]".repeat(levels));
        check(listed(20), None);
        check(listed(21), Some("nesting of arguments: at least 21 found, the maximum is 20"));
        check(format!("{{{}}}", "a ".repeat(4998)), None);
        check("a ".repeat(5001), Some("tokens: at least 5001 found, the maximum is 5000"));
        check(" ".repeat(65_537), Some("bytes of the query: 65537, the maximum is 65536"));
    }

    #[test]
    fn texts_comments_and_arguments_are_no_selections() {
        let count = |query: &str| Tokens(query.as_bytes()).count();
        assert_eq!(count("{a # {{{ @ \n b}"), 4);
        assert_eq!(count(r#"{a(b:"{{{\"@")}"#), 8);
        assert_eq!(count("{a(b:\"\"\"{ \\\"\"\" \" @\"\"\")}"), 8);
        // A point in a number counts as one more token on either side: nobody has many.
        assert_eq!(count("{...a, ... on B{c} -1.5e3}"), 13);
        assert_eq!(count("\"unclosed"), 1);
        let arguments = format!("{{a(b:{{{}}})}}", "c:1 ".repeat(1000));
        assert_eq!(scan(&arguments), Ok(()), "names of arguments are no aliases");
    }

    fn weight(query: &str, variables: serde_json::Value) -> Result<Weight, Beyond> {
        let document = parse_query(query).unwrap();
        weigh(&document, &Variables::from_json(variables), &SIZES)
    }

    #[test]
    fn lists_and_points_cost_what_they_may_return() {
        let check = |query: &str, cost: u64| {
            let found = weight(query, serde_json::json!({"n": 7})).unwrap();
            assert_eq!(found.cost, cost, "{query}");
        };
        check("{__typename}", 1);
        check("{clusters{id name}}", 1 + 3);
        check("{hosts{hostname}}", 1 + 31 * 2);
        check("{hosts(limit: 5){hostname}}", 1 + 5 * 2);
        check("{cluster(id:\"c\"){hosts{gpus{id}}}}", 1 + (1 + 31 * (1 + 1 + 8 * 2)));
        check("{gpus{id ...F}} fragment F on Gpu{uuid}", 1 + 247 * 3);
        check("{gpu(uuid:\"u\"){telemetry{timestamp}}}", 1 + 20 + 100 * 2);
        check("{gpu(uuid:\"u\"){telemetry(limit:4){timestamp}}}", 1 + 20 + 4 * 2);
        check("query($n:Int){telemetry(limit:$n){timestamp}}", 20 + 7 * 2);
        check("query($m:Int=9){telemetry(limit:$m){timestamp}}", 20 + 9 * 2);
        check("{telemetry(limit:-1){timestamp}}", 20);
        check("{a:gpus{id} b:gpus{id}}", 2 * (1 + 247 * 2));
    }

    #[test]
    fn what_costs_too_much_or_never_ends_is_refused() {
        let check = |query: &str, expected: &str| {
            let said = weight(query, serde_json::json!({})).unwrap_err().to_string();
            assert_eq!(said, expected, "{query}");
        };
        check(
            "{telemetry(limit:1000000000){timestamp}}",
            "cost: the answer may hold 2000000020 values, the maximum is 200000; ask for fewer \
             points, entries or fields",
        );
        let circle = "{...A} fragment A on Query{...B} fragment B on Query{clusters{...A}}";
        check(circle, "levels of one fragment in itself: A contains itself, the maximum is 0");
        // Each fragment holds the next one twice: 2^40 fields.
        let doubling: String = (0..40)
            .map(|n| format!("fragment F{n} on Query{{...F{} a:__typename ...F{}}}", n + 1, n + 1))
            .collect();
        let doubling = format!("{{...F0}} {doubling} fragment F40 on Query{{__typename}}");
        let said = weight(&doubling, serde_json::json!({})).unwrap_err().to_string();
        assert!(said.starts_with("cost: the answer may hold"), "{said}");
        let deep: String =
            (0..30).map(|n| format!("fragment F{n} on Query{{a{{...F{}}}}}", n + 1)).collect();
        let deep = format!("{{...F0}} {deep} fragment F30 on Query{{a}}");
        check(&deep, "depth: at least 30 found, the maximum is 20");
    }
}
