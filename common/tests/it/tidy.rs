//! The habits of this tree, as tests that read it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// What stands at the top: packages, papers, and what was built or logged (ignored by git).
const TOP: [&str; 15] = [
    "Cargo.lock",
    "Cargo.toml",
    "CHANGELOG.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "collector",
    "common",
    "deploy",
    "docs",
    "gateway",
    "scripts",
    "streamer",
    "target",
    "logs",
];
const PACKAGES: [&str; 4] = ["common", "streamer", "collector", "gateway"];
const LINES_MAX: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Files below `folder` that end in one of `endings`, as paths from the root.
fn files(folder: &str, endings: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(root().join(folder)) else { return found };
    for entry in entries {
        let entry = entry.unwrap();
        let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&path, endings));
        } else if endings.iter().any(|ending| path.ends_with(ending)) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn sources(package: &str) -> Vec<String> {
    let found = files(&format!("{package}/src"), &[".rs"]);
    assert!(!found.is_empty(), "{package} has sources");
    found
}

/// A line without its comment. (`//` behind a colon is an address.)
fn code(line: &str) -> &str {
    let comment = line.match_indices("//").find(|(at, _)| !line[..*at].ends_with(':'));
    comment.map_or(line, |(at, _)| &line[..at])
}

/// The lines of code that ship, with their numbers: all before a `#[cfg(test)]` module.
fn shipped(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let tail = ["\n#[cfg(test)]\nmod tests {", "\n#[cfg(test)]\npub(crate) mod tests {"];
    let end = tail.iter().filter_map(|tail| text.find(tail)).min().unwrap_or(text.len());
    text[..end].lines().enumerate().map(|(n, line)| (n + 1, code(line)))
}

/// Where `words` stand in code that ships.
fn findings(path: &str, text: &str, words: &[&str]) -> Vec<String> {
    let has = |line: &str| words.iter().any(|word| line.contains(word));
    shipped(text).filter(|(_, line)| has(line)).map(|(n, l)| format!("{path}:{n}: {l}")).collect()
}

fn is_test(path: &str) -> bool {
    path.starts_with("common/src/testing/")
        || path.ends_with("/tests.rs")
        || path.contains("/tests/")
}

#[test]
fn the_scan_sees_code_and_neither_comments_nor_tests() {
    let check = |text: &str, expected: usize| {
        assert_eq!(findings("f", text, &[".unwrap("]).len(), expected, "{text}");
    };
    check("let a = b.unwrap();\nlet c = d.unwrap_or(1);\n", 1);
    check("// b.unwrap()\nf(); // c.unwrap()\n", 0);
    check("let a = get(\"http://x\").unwrap();\n", 1);
    check("fn f() {}\n\n#[cfg(test)]\nmod tests {\n    a.unwrap();\n}\n", 0);
    check("#[cfg(test)]\nmod tests;\n\nfn f() {\n    a.unwrap();\n}\n", 1);
}

#[test]
fn nothing_of_ours_panics_outside_tests() {
    let words = [".unwrap(", ".expect(", ".unwrap_err(", "panic!(", "todo!(", "unimplemented!("];
    let mut found = Vec::new();
    for path in PACKAGES.iter().flat_map(|p| sources(p)).filter(|path| !is_test(path)) {
        let text = read(&path);
        found.extend(findings(&path, &text, &words));
        // What is left out must be the end of the file.
        if let Some(at) = text.find("\n#[cfg(test)]\nmod tests {") {
            let closed = text[at..].find("\n}\n").map(|end| at + end + "\n}\n".len());
            assert_eq!(closed, Some(text.len()), "{path}: code behind its tests");
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn only_one_module_names_the_etcd_client() {
    let mut found = Vec::new();
    for package in PACKAGES {
        let all = files(package, &[".rs"]);
        // The tests' etcd in memory and their faulty wire lie below the client.
        let may = [
            "common/src/etcd/",
            "common/src/testing/",
            "common/tests/sim/",
            "common/tests/it/tidy",
        ];
        for path in all.iter().filter(|path| !may.iter().any(|may| path.starts_with(may))) {
            let text = read(path);
            found.extend(
                text.lines()
                    .filter(|l| code(l).contains("etcd_client"))
                    .map(|l| format!("{path}: {l}")),
            );
        }
        let manifest = read(&format!("{package}/Cargo.toml"));
        assert_eq!(manifest.contains("etcd-client"), package == "common", "{package}/Cargo.toml");
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn what_is_pure_names_neither_a_runtime_nor_etcd() {
    let words = ["tokio", "etcd_client", "etcd::", "std::env", "std::fs", "std::net"];
    let pure = ["common/src/model", "common/src/block", "common/src/keyspace"];
    let mut paths: Vec<String> = pure.iter().flat_map(|p| files(p, &[".rs"])).collect();
    assert!(paths.len() > 10);
    paths.extend(["common/src/assign.rs".to_owned(), "common/src/limits.rs".to_owned()]);
    let found: Vec<_> = paths.iter().flat_map(|p| findings(p, &read(p), &words)).collect();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn binaries_do_not_import_each_other() {
    for package in &PACKAGES[1..] {
        let others = PACKAGES[1..].iter().filter(|other| *other != package);
        let names: Vec<_> = others.clone().map(|other| format!("nexus_{other}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let found: Vec<_> =
            sources(package).iter().flat_map(|p| findings(p, &read(p), &names)).collect();
        assert!(found.is_empty(), "{found:#?}");
        // Tests may use another binary; what ships may not.
        let manifest = read(&format!("{package}/Cargo.toml"));
        let shipped = manifest.split("[dev-dependencies]").next().unwrap_or_default();
        for other in others {
            assert!(!shipped.contains(&format!("nexus-{other}")), "{package} needs {other}");
        }
    }
}

#[test]
fn no_file_of_ours_is_longer_than_a_reader_can_bear() {
    let endings = [".rs", ".sh", ".awk", ".toml", ".md", ".js", ".css", ".html"];
    let folders = PACKAGES.iter().chain(&["docs", "deploy", "scripts"]);
    let all: Vec<_> = folders.flat_map(|folder| files(folder, &endings)).collect();
    assert!(all.len() > 50);
    let long: Vec<_> = all
        .iter()
        .map(|path| (path, read(path).lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .collect();
    assert!(long.is_empty(), "{long:?}");
}

#[test]
fn every_dependency_says_why_it_is_here() {
    let manifest = read("Cargo.toml");
    let (_, list) = manifest.split_once("\n[workspace.dependencies]\n").unwrap();
    let lines = list.lines().take_while(|line| !line.starts_with('['));
    let entries: Vec<_> =
        lines.filter(|l| l.contains('=') && !l.starts_with('#') && !l.contains("path =")).collect();
    assert!(entries.len() > 20);
    let silent: Vec<_> = entries.iter().filter(|line| !line.contains(" # ")).collect();
    assert!(silent.is_empty(), "{silent:#?}");
}

#[test]
fn the_table_of_the_keyspace_lists_exactly_the_kinds_of_key() {
    let source = read("common/src/keyspace/key.rs");
    let (_, kinds) = source.split_once("pub enum Key {\n").unwrap();
    let (kinds, _) = kinds.split_once("\n}\n").unwrap();
    let variants = kinds.lines().filter(|l| l.starts_with("    ") && l.ends_with(',')).count();
    let kinds: BTreeSet<&str> = kinds
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("/// `"))
        .filter_map(|line| line.split('`').next())
        .collect();
    assert_eq!(kinds.len(), variants, "each kind has its pattern");

    let document = read("docs/ETCD_MESSAGE_QUEUE.md");
    let (_, table) = document.split_once("\n## Keyspace\n").unwrap();
    let table = table.split("\n## ").next().unwrap_or_default();
    let rows: Vec<&str> =
        table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert_eq!(rows.iter().copied().collect::<BTreeSet<_>>(), kinds);
    assert_eq!(rows.len(), kinds.len(), "a kind stands twice");
}

#[test]
fn nothing_else_stands_at_the_top() {
    let others: Vec<_> = fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.') && !TOP.contains(&name.as_str()))
        .collect();
    assert!(others.is_empty(), "{others:?}");
}
