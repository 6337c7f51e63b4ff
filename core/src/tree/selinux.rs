//! SELinux labels from the policy that a tree carries, as composefs-boot gives them.
//!
//! `file_contexts` is a list of regular expressions; the last that matches a path and type wins. Thousands of them meet
//! tens of thousands of paths, so they are sorted first: expressions without any operator are looked up, the others
//! are compiled into one automaton for each first folder that they name, and one for those that name none. What the
//! automaton cannot do (look-around, back references) is tried one by one.
//!
//! Invariant: the number of an expression counts from the end of the list; the lowest number that matches wins,
//! whichever of the three finds it.

use std::cell::RefCell;
use std::collections::HashMap;

use regex_automata::hybrid::dfa;
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input};

use super::{Inode, Kind, NodeId, Tree, Xattr, count, path_error, push_bytes};
use crate::error::{Error, Result};
use crate::ids::ObjectId;

const SELINUX: &[u8] = b"security.selinux";
/// Memory of one automaton's states; a full cache is emptied, which costs time only.
const CACHE: usize = 4 << 20;

/// What labels a tree's files get.
pub(super) enum Labels {
    /// None: there is no policy.
    None,
    /// Those of a policy.
    Policy(Box<Policy>),
}

/// A policy's file contexts.
pub(super) struct Policy {
    /// Paths that are labelled as if they were others.
    aliases: HashMap<Vec<u8>, Vec<u8>>,
    matcher: Matcher,
    /// By number.
    contexts: Vec<String>,
}

impl Labels {
    /// The policy that `/etc/selinux/config` names; none where there is none.
    pub fn of(tree: &Tree, read: &dyn Fn(&ObjectId) -> Result<Vec<u8>>) -> Result<Self> {
        let Some(selinux) = folder(tree.root(), "/", "etc/selinux")? else {
            return Ok(Self::None);
        };
        let Some(config) = text(selinux, "/etc/selinux", "config", read)? else {
            return Ok(Self::None);
        };
        let Some(policy) = policy_type(&config) else {
            return Ok(Self::None);
        };
        let files = format!("{policy}/contexts/files");
        let path = format!("/etc/selinux/{files}");
        let found = folder(selinux, "/etc/selinux", &files)?;
        let found = found.ok_or_else(|| path_error(path.as_bytes(), "the SELinux policy's folder is missing"))?;
        Policy::read(&|name| Ok((format!("{path}/{name}"), text(found, &path, name, read)?)))
            .map(|policy| Self::Policy(Box::new(policy)))
    }
}

/// A folder below another; `None` where something on the way is missing.
fn folder<'t>(from: Inode<'t>, above: &str, path: &str) -> Result<Option<Inode<'t>>> {
    let mut at = from;
    for name in path.split('/') {
        match at.child(name.as_bytes()) {
            None => return Ok(None),
            Some(next) if next.is_dir() => at = next,
            Some(_) => {
                let path = format!("{}/{path}", above.trim_end_matches('/'));
                return Err(path_error(
                    path.as_bytes(),
                    format!("{name:?} in this path is no folder"),
                ));
            }
        }
    }
    Ok(Some(at))
}

fn text(
    folder: Inode<'_>,
    path: &str,
    name: &str,
    read: &dyn Fn(&ObjectId) -> Result<Vec<u8>>,
) -> Result<Option<String>> {
    let Some(file) = folder.child(name.as_bytes()) else {
        return Ok(None);
    };
    let refuse = |why: &str| path_error(format!("{path}/{name}").as_bytes(), why);
    let content = file.content(read)?.ok_or_else(|| refuse("it is no regular file"))?;
    String::from_utf8(content)
        .map(Some)
        .map_err(|_| refuse("it is not UTF-8"))
}

/// The first `SELINUXTYPE=` of `/etc/selinux/config`.
fn policy_type(config: &str) -> Option<String> {
    config.lines().find_map(|line| {
        let (key, value) = line.split_once('=')?;
        key.trim()
            .eq_ignore_ascii_case("SELINUXTYPE")
            .then(|| value.trim().to_owned())
    })
}

/// Gives a policy file's path, and its text where there is one.
type Files<'a> = dyn Fn(&str) -> Result<(String, Option<String>)> + 'a;

impl Policy {
    fn read(files: &Files<'_>) -> Result<Self> {
        let mut specs = Vec::new();
        for name in ["file_contexts", "file_contexts.local", "file_contexts.homedirs"] {
            match files(name)? {
                (path, Some(text)) => parse_specs(&path, &text, &mut specs)?,
                (path, None) if name == "file_contexts" => {
                    return Err(path_error(path.as_bytes(), "the SELinux policy must have this file"));
                }
                _ => {}
            }
        }
        let mut aliases = HashMap::new();
        for name in ["file_contexts.subs", "file_contexts.subs_dist"] {
            if let (path, Some(text)) = files(name)? {
                parse_aliases(&path, &text, &mut aliases)?;
            }
        }
        specs.reverse();
        let matcher = Matcher::new(&specs)?;
        let contexts = specs.into_iter().map(|spec| spec.context).collect();
        Ok(Self {
            aliases,
            matcher,
            contexts,
        })
    }

    /// The number of the context of a path; `None` without one.
    fn find(&self, path: &[u8], kind: u8) -> Option<u32> {
        let found = self.matcher.find(path, kind)?;
        (self.contexts[found as usize] != "<<none>>").then_some(found)
    }
}

/// A line of `file_contexts`.
struct Spec {
    regex: String,
    /// Type letter; 0 for any.
    kind: u8,
    context: String,
    /// Where it stands.
    path: String,
    line: usize,
}

impl Spec {
    fn error(&self, why: impl std::fmt::Display) -> Error {
        path_error(self.path.as_bytes(), format!("line {}: {why}", self.line))
    }
}

fn parse_specs(path: &str, text: &str, specs: &mut Vec<Spec>) -> Result<()> {
    for (at, line) in text.lines().enumerate() {
        let refuse = |why: &str| path_error(path.as_bytes(), format!("line {}: {why}", at + 1));
        let mut fields = line.split_whitespace();
        let Some(regex) = fields.next().filter(|f| !f.starts_with('#')) else {
            continue;
        };
        let mut context = fields.next().ok_or_else(|| refuse("an expression without context"))?;
        let mut kind = 0;
        if let Some(letter) = context.strip_prefix('-') {
            kind = match letter.as_bytes() {
                [letter @ (b'b' | b'c' | b'd' | b'p' | b'l' | b's' | b'-')] => *letter,
                _ => return Err(refuse("the file type is none of -b -c -d -p -l -s --")),
            };
            context = fields.next().ok_or_else(|| refuse("an expression without context"))?;
        }
        if fields.next().is_some() {
            return Err(refuse("more than expression, type and context"));
        }
        specs.push(Spec {
            regex: regex.to_owned(),
            kind,
            context: context.to_owned(),
            path: path.to_owned(),
            line: at + 1,
        });
    }
    Ok(())
}

fn parse_aliases(path: &str, text: &str, aliases: &mut HashMap<Vec<u8>, Vec<u8>>) -> Result<()> {
    for (at, line) in text.lines().enumerate() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields[..] {
            [] => {}
            [first, ..] if first.starts_with('#') => {}
            [alias, original] => _ = aliases.insert(alias.into(), original.into()),
            _ => return Err(path_error(path.as_bytes(), format!("line {}: not two paths", at + 1))),
        }
    }
    Ok(())
}

/// All expressions, for lookups.
struct Matcher {
    /// Expressions without operators, by path: type letter (0 for any) and number.
    literals: HashMap<Vec<u8>, Vec<(u8, u32)>>,
    /// Expressions by the first folder that they name; without one under the empty name.
    automata: HashMap<Vec<u8>, Automaton>,
    /// Numbers in ascending order.
    others: Vec<(u32, fancy_regex::Regex)>,
}

struct Automaton {
    dfa: dfa::DFA,
    cache: RefCell<dfa::Cache>,
    /// The number of each of its patterns, ascending.
    numbers: Vec<u32>,
}

impl Matcher {
    /// `specs` come with the winner first.
    fn new(specs: &[Spec]) -> Result<Self> {
        let syntax = syntax::Config::new().unicode(false).utf8(false).line_terminator(0);
        let mut matcher = Self {
            literals: HashMap::new(),
            automata: HashMap::new(),
            others: Vec::new(),
        };
        let mut groups: HashMap<Vec<u8>, (Vec<u32>, Vec<String>)> = HashMap::new();
        for (number, spec) in specs.iter().enumerate() {
            let number = count(number)?;
            if let Some(path) = literal(&spec.regex) {
                matcher.literals.entry(path).or_default().push((spec.kind, number));
                continue;
            }
            let letter = if spec.kind == 0 { '.' } else { char::from(spec.kind) };
            let pattern = format!("^({}){letter}$", spec.regex);
            if syntax::parse_with(&pattern, &syntax).is_ok() {
                let (numbers, patterns) = groups.entry(first_folder(&spec.regex)).or_default();
                numbers.push(number);
                patterns.push(pattern);
            } else {
                // Byte by byte: every byte is the character with its number.
                let pattern: String = pattern.bytes().map(char::from).collect();
                let regex = fancy_regex::Regex::new(&pattern).map_err(|e| spec.error(e))?;
                matcher.others.push((number, regex));
            }
        }
        for (name, (numbers, patterns)) in groups {
            let automaton = Automaton::new(&syntax, numbers, &patterns);
            let automaton =
                automaton.map_err(|why| specs.first().map_or_else(|| path_error(b"/", &why), |s| s.error(&why)))?;
            matcher.automata.insert(name, automaton);
        }
        Ok(matcher)
    }

    /// The lowest number that matches.
    fn find(&self, path: &[u8], kind: u8) -> Option<u32> {
        let literals = self.literals.get(path).into_iter().flatten();
        let literals = literals
            .filter(|(k, _)| [0, kind].contains(k))
            .map(|(_, number)| *number);
        let key = [path, &[kind]].concat();
        let first = path.split(|b| *b == b'/').nth(1).unwrap_or_default();
        let groups = [first, b""];
        let groups = &groups[..if first.is_empty() { 1 } else { 2 }];
        let automata = groups.iter().filter_map(|name| self.automata.get(*name)?.find(&key));
        let mut best = automata.chain(literals).min();
        for (number, regex) in &self.others {
            if best.is_some_and(|best| best < *number) {
                break;
            }
            let key: String = key.iter().copied().map(char::from).collect();
            if regex.is_match(&key).unwrap_or(false) {
                best = Some(*number);
            }
        }
        best
    }
}

impl Automaton {
    fn new(syntax: &syntax::Config, numbers: Vec<u32>, patterns: &[String]) -> Result<Self, String> {
        let dfa = dfa::Builder::new()
            .syntax(*syntax)
            .configure(dfa::Config::new().cache_capacity(CACHE).skip_cache_capacity_check(true))
            .build_many(patterns)
            .map_err(|e| e.to_string())?;
        let cache = RefCell::new(dfa.create_cache());
        Ok(Self { dfa, cache, numbers })
    }

    fn find(&self, key: &[u8]) -> Option<u32> {
        let input = Input::new(key).anchored(Anchored::Yes);
        let found = self.dfa.try_search_fwd(&mut self.cache.borrow_mut(), &input);
        // It gives up only on look-around at Unicode words, which the syntax has not.
        found
            .ok()
            .flatten()
            .map(|found| self.numbers[found.pattern().as_usize()])
    }
}

/// The path that an expression without operators matches.
fn literal(regex: &str) -> Option<Vec<u8>> {
    let mut path = Vec::with_capacity(regex.len());
    let mut bytes = regex.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            // To the automaton `\<` and `\>` are word boundaries.
            b'\\' => path.push(
                bytes
                    .next()
                    .filter(|b| b.is_ascii_punctuation() && !b"<>".contains(b))?,
            ),
            b'.' | b'*' | b'+' | b'?' | b'(' | b')' | b'[' | b']' | b'{' | b'}' | b'|' | b'^' | b'$' => return None,
            _ => path.push(byte),
        }
    }
    Some(path)
}

/// The first folder that every path matching an expression is in; empty where that cannot be told.
fn first_folder(regex: &str) -> Vec<u8> {
    let Some(rest) = regex.strip_prefix('/') else {
        return Vec::new();
    };
    if alternatives(regex) {
        return Vec::new();
    }
    if let Some(name) = rest.strip_suffix("(/.*)?").and_then(literal) {
        return name.split(|b| *b == b'/').next().unwrap_or_default().to_vec();
    }
    match rest.split_once('/') {
        Some((name, after)) if !after.starts_with(['?', '*', '{']) => literal(name).unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// Whether an expression has a `|` outside of all brackets.
fn alternatives(regex: &str) -> bool {
    let (mut depth, mut class, mut escaped) = (0_i32, false, false);
    for byte in regex.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b']' => class = false,
            _ if class => {}
            b'[' => class = true,
            b'(' => depth += 1,
            b')' => depth -= 1,
            b'|' if depth <= 0 => return true,
            _ => {}
        }
    }
    false
}

impl Tree {
    /// Gives every inode its label; an inode whose entries get different ones is split.
    pub(super) fn relabel(&mut self, labels: Labels) -> Result<()> {
        let Labels::Policy(policy) = labels else {
            for at in 0..self.nodes.len() {
                self.set_label(NodeId(count(at)?), None, &mut HashMap::new())?;
            }
            return Ok(());
        };
        let mut runs = HashMap::new();
        let mut labelled: HashMap<NodeId, Option<u32>> = HashMap::new();
        let root = policy.find(b"/", b'd');
        self.label(NodeId::ROOT, root, &policy, &mut runs)?;
        let mut stack = vec![(self.run(NodeId::ROOT), Vec::new())];
        while let Some((run, folder)) = stack.last_mut() {
            let Some(at) = run.next() else {
                stack.pop();
                continue;
            };
            let entry = self.entries[at];
            let mut path = folder.clone();
            if path.last() != Some(&b'/') {
                path.push(b'/');
            }
            path.extend_from_slice(self.get(entry.name));
            if let Some(original) = policy.aliases.get(&path) {
                path.clone_from(original);
            }
            let label = policy.find(&path, letter(self.inode(entry.node)));
            if self.node(entry.node).is_dir() {
                self.label(entry.node, label, &policy, &mut runs)?;
                stack.push((self.run(entry.node), path));
                continue;
            }
            let node = match labelled.get(&entry.node) {
                Some(before) if *before != label => {
                    let copy = NodeId(count(self.nodes.len())?);
                    self.nodes.push(*self.node(entry.node));
                    self.entries[at].node = copy;
                    copy
                }
                _ => entry.node,
            };
            self.label(node, label, &policy, &mut runs)?;
            labelled.insert(node, label);
        }
        Ok(())
    }

    fn label(&mut self, id: NodeId, label: Option<u32>, policy: &Policy, runs: &mut Runs) -> Result<()> {
        let text = label.map(|number| policy.contexts[number as usize].as_bytes());
        self.set_label(id, text.zip(label), runs)
    }

    /// Sets or removes the attribute; inodes with the same label and nothing else share one run.
    fn set_label(&mut self, id: NodeId, label: Option<(&[u8], u32)>, runs: &mut Runs) -> Result<()> {
        let (first, end) = self.node(id).xattrs;
        let run = first as usize..end as usize;
        let others = run.clone().filter(|x| self.get(self.xattrs[*x].key) != SELINUX).count();
        if label.is_none() && others == run.len() {
            return Ok(());
        }
        let known = label.and_then(|(_, number)| runs.get(&number).copied());
        if let (Some(known), 0) = (known, others) {
            self.node_mut(id).xattrs = known;
            return Ok(());
        }
        let start = self.xattrs.len();
        for x in run {
            let xattr = self.xattrs[x];
            if self.get(xattr.key) != SELINUX {
                self.xattrs.push(xattr);
            }
        }
        if let Some((text, number)) = label {
            let xattr = match known {
                // A run of the label alone.
                Some((at, _)) => self.xattrs[at as usize],
                None => Xattr {
                    key: push_bytes(&mut self.bytes, SELINUX)?,
                    value: push_bytes(&mut self.bytes, text)?,
                },
            };
            let place = self.xattrs[start..].partition_point(|x| self.get(x.key) < SELINUX);
            self.xattrs.insert(start + place, xattr);
            if others == 0 {
                runs.insert(number, (count(start)?, count(start + 1)?));
            }
        }
        self.node_mut(id).xattrs = (count(start)?, count(self.xattrs.len())?);
        Ok(())
    }
}

/// The run of attributes with nothing but a label, by the label's number.
type Runs = HashMap<u32, (u32, u32)>;

/// The type letter of selabel_file(5).
fn letter(inode: Inode<'_>) -> u8 {
    match inode.kind() {
        Kind::Directory => b'd',
        Kind::Regular(_) => b'-',
        Kind::Symlink(_) => b'l',
        Kind::CharDevice(_) => b'c',
        Kind::BlockDevice(_) => b'b',
        Kind::Fifo => b'p',
        Kind::Socket => b's',
    }
}
