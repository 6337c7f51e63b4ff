//! The way of the data is one direction: no module of `cfs-core` imports one that `lib.rs` lists below it, no crate
//! depends on one above it, and `unsafe` and raw writing live under `core/src/sys` only.
//!
//! Read from the sources as text: comments, strings' insides and test modules do not count.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

use std::fs;
use std::path::{Path, PathBuf};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The code of a file without line comments and without what follows `#[cfg(test)] mod …`.
fn production(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let line = line.trim_start();
        let test_module = line == "#[cfg(test)]"
            && lines
                .clone()
                .find(|l| !l.trim_start().starts_with("#["))
                .is_some_and(|l| {
                    let l = l.trim_start();
                    l.starts_with("mod ") && l.ends_with('{')
                });
        if test_module {
            break;
        }
        code.push_str(line.split_once("//").map_or(line, |(before, _)| before));
        code.push('\n');
    }
    code
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn word(text: &str) -> &str {
    &text[..text.find(|c| !is_word(c)).unwrap_or(text.len())]
}

/// The first names of the paths behind `prefix`, such as `store` for `crate::store::Store` and for `crate::{store,
/// ids}`.
fn names_behind(code: &str, prefix: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        if code[..at].ends_with(|c: char| is_word(c) || c == ':') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            names.push(word(rest).to_owned());
            continue;
        };
        let mut depth = 1;
        let mut start = true;
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => start = true,
                c if start && depth == 1 && is_word(c) => {
                    names.push(word(&group[i..]).to_owned());
                    start = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    names
}

fn modules_in_order() -> Vec<String> {
    let lib = fs::read_to_string(workspace().join("core/src/lib.rs")).unwrap();
    let order: Vec<String> = lib
        .lines()
        .filter_map(|l| {
            l.replace("pub(crate) ", "pub ")
                .strip_prefix("pub mod ")?
                .strip_suffix(';')
                .map(str::to_owned)
        })
        .collect();
    assert!(order.len() > 10, "lib.rs lists the modules, one `pub mod` a line");
    order
}

#[test]
fn no_module_of_core_imports_one_listed_below_it() {
    let src = workspace().join("core/src");
    let order = modules_in_order();
    let mut wrong = Vec::new();
    for file in rust_files(&src) {
        let parts: Vec<String> = file
            .strip_prefix(&src)
            .unwrap()
            .with_extension("")
            .iter()
            .map(|p| p.to_str().unwrap().to_owned())
            .filter(|p| p != "mod")
            .collect();
        let module = &parts[0];
        // `tests.rs` and `tests/` hang under `#[cfg(test)] mod tests;`.
        if module == "lib" || parts.iter().any(|part| part == "tests") {
            continue;
        }
        let Some(own) = order.iter().position(|m| m == module) else {
            panic!("{} belongs to no module of lib.rs", file.display());
        };
        let code = production(&fs::read_to_string(&file).unwrap());
        let above = "super::".repeat(parts.len());
        for name in names_behind(&code, "crate::")
            .into_iter()
            .chain(names_behind(&code, &above))
        {
            if order.iter().position(|m| *m == name).is_some_and(|p| p > own) {
                wrong.push(format!(
                    "{}: {module} imports {name}, which comes after it",
                    file.display()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_code_lives_behind_the_one_door_to_the_kernel() {
    let root = workspace();
    let door = root.join("core/src/sys");
    let mut wrong = Vec::new();
    for part in ["core/src", "bootloader/src", "cli/src"] {
        for file in rust_files(&root.join(part)) {
            if file.starts_with(&door) {
                continue;
            }
            let text = fs::read_to_string(&file).unwrap();
            for (n, line) in text.lines().enumerate() {
                let line = line.split_once("//").map_or(line, |(before, _)| before);
                for (at, _) in line.match_indices("unsafe") {
                    if word(&line[at..]) == "unsafe" && !line[..at].ends_with(is_word) {
                        wrong.push(format!("{}:{}: {}", file.display(), n + 1, line.trim()));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "unsafe outside core/src/sys:\n{}", wrong.join("\n"));
}

/// The dependencies of a crate that end up in the program: the table `[dependencies]` of its manifest.
fn dependencies(manifest: &Path) -> Vec<String> {
    let text = fs::read_to_string(manifest).unwrap();
    let table: toml::Table = text.parse().unwrap();
    table
        .get("dependencies")
        .and_then(|d| d.as_table())
        .unwrap()
        .keys()
        .cloned()
        .collect()
}

#[test]
fn crates_depend_in_one_direction() {
    let root = workspace();
    let core = dependencies(&root.join("core/Cargo.toml"));
    let bootloader = dependencies(&root.join("bootloader/Cargo.toml"));
    let cli = dependencies(&root.join("cli/Cargo.toml"));
    let has = |of: &[String], name: &str| of.iter().any(|d| d == name);
    assert!(
        !has(&core, "cfs-bootloader") && !has(&core, "cfs-update"),
        "core depends on nothing of ours"
    );
    assert!(
        has(&bootloader, "cfs-core") && !has(&bootloader, "cfs-update"),
        "bootloader depends on core only"
    );
    assert!(
        has(&cli, "cfs-core") && has(&cli, "cfs-bootloader"),
        "the program depends on both"
    );
}

#[test]
fn the_reference_implementation_is_in_tests_only() {
    for part in ["core", "bootloader", "cli"] {
        let all = dependencies(&workspace().join(part).join("Cargo.toml"));
        let peer = all.iter().find(|d| d.starts_with("composefs"));
        assert_eq!(peer, None, "{part} ships a crate of the reference implementation");
    }
}

#[test]
fn the_library_reads_no_environment_and_prints_nothing() {
    let root = workspace();
    let mut wrong = Vec::new();
    for part in ["core/src", "bootloader/src"] {
        for file in rust_files(&root.join(part)) {
            // `tests.rs` hangs under `#[cfg(test)] mod tests;`.
            if file.starts_with(root.join("bootloader/src/root")) || file.ends_with("tests.rs") {
                continue;
            }
            let code = production(&fs::read_to_string(&file).unwrap());
            for forbidden in [
                "println!",
                "eprintln!",
                "print!(",
                "eprint!(",
                "dbg!",
                "env::var",
                "env::home_dir",
                "env::args",
            ] {
                if code.contains(forbidden) {
                    wrong.push(format!("{}: {forbidden}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn this_test_sees_what_it_looks_for() {
    assert_eq!(
        names_behind("use crate::{ids::{A, B}, store, sys::fs};", "crate::"),
        ["ids", "store", "sys"]
    );
    assert_eq!(
        names_behind("crate::tree::Tree; my_crate::x; super::super::y", "crate::"),
        ["tree"]
    );
    assert_eq!(names_behind("use super::super::y;", "super::super::"), ["y"]);
    assert_eq!(production("a // crate::x\n#[cfg(test)]\nmod tests {\n b }"), "a \n");
    assert_eq!(production("#[cfg(test)]\nuse x;\nc"), "#[cfg(test)]\nuse x;\nc\n");
}

#[test]
fn the_documentation_names_files_that_exist() {
    let root = workspace();
    let mut missing = Vec::new();
    for doc in [
        "README.md",
        "docs/architecture.md",
        "docs/commands.md",
        "docs/boot.md",
        "docs/performance.md",
    ] {
        let Ok(text) = fs::read_to_string(root.join(doc)) else {
            missing.push(doc.to_owned());
            continue;
        };
        for path in text.split('`').skip(1).step_by(2) {
            let ours = ["core/", "bootloader/", "cli/", "testdata/", "examples/", "docs/"]
                .iter()
                .any(|p| path.starts_with(p));
            if ours && !path.contains(['*', ' ']) && !root.join(path).exists() {
                missing.push(format!("{doc} names {path}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}
