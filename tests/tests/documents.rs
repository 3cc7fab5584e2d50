//! What the documents say is tested has its test.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn document(name: &str) -> String {
    fs::read_to_string(root().join("docs").join(name)).unwrap()
}

/// Every name of a function, and every name that a string literal gives to a case of the contract.
fn names_in_sources() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" && name != "corpus" {
                    folders.push(path);
                }
            } else if name.ends_with(".rs") {
                let text = fs::read_to_string(&path).unwrap();
                let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                let mut before = "";
                for word in words {
                    if before == "fn" || is_id(word) {
                        names.insert(word.to_owned());
                    }
                    before = word;
                }
            }
        }
    }
    names
}

/// `p14_…`, `b03_…`
fn is_id(word: &str) -> bool {
    let mut characters = word.chars();
    matches!(characters.next(), Some('p' | 'b'))
        && characters.next().is_some_and(|c| c.is_ascii_digit())
        && characters.next().is_some_and(|c| c.is_ascii_digit())
        && characters.next() == Some('_')
        && characters.next().is_some()
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn lab_steps() -> BTreeSet<String> {
    let script = fs::read_to_string(root().join("scripts/lab.d/test")).unwrap();
    let (_, all) = script.split_once("ALL=(").unwrap();
    let (all, _) = all.split_once(')').unwrap();
    all.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn every_requirement_that_is_done_names_tests_that_exist() {
    let (names, steps) = (names_in_sources(), lab_steps());
    let mut done = 0;
    let page = document("requirements.md");
    for row in page.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let [_, id, _, state, _, tests, _] = cells[..] else {
            continue;
        };
        if !state.starts_with("done") {
            continue;
        }
        done += 1;
        let mut proofs = 0;
        for proof in quoted(tests) {
            let known = match proof.strip_suffix('*') {
                Some(prefix) => names.iter().any(|name| name.starts_with(prefix)),
                None => {
                    names.contains(proof) || steps.contains(proof) || proof.starts_with("scripts/")
                }
            };
            assert!(known, "{id}: there is no test {proof}");
            proofs += 1;
        }
        assert!(proofs > 0 || tests.contains("lab"), "{id} has no test");
    }
    assert!(done >= 21, "only {done} rows are done");
}

#[test]
fn every_bad_input_names_a_test_that_exists() {
    let (names, steps) = (names_in_sources(), lab_steps());
    let mut rows = 0;
    let page = document("bad-input.md");
    for row in page
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| what "))
    {
        let tests = row.rsplit('|').nth(1).unwrap();
        let proofs: Vec<_> = quoted(tests)
            .filter(|proof| !proof.starts_with("--"))
            .collect();
        assert!(!proofs.is_empty(), "no test: {row}");
        for proof in proofs {
            let test = proof.rsplit("::").next().unwrap();
            let known = names.contains(test) || steps.contains(test) || root().join(proof).exists();
            assert!(known, "there is no test {proof}");
        }
        rows += 1;
    }
    assert!(rows >= 30, "only {rows} rows");
}
