//! The published rules for hostnames and tags.

use std::borrow::Cow;

use super::Refusal;

const MAX_HOSTNAME: usize = 63;
const RESERVED: [&str; 3] = ["localhost", "backbone", "broadcast"];
const MAX_TAGS: usize = 10;
const MAX_TAG: usize = 32;

/// 1–63 of `a-z0-9-`, no hyphen at either end, not reserved.
///
/// # Errors
/// Says which rule is broken.
pub fn check_hostname(name: &str) -> Result<(), Refusal> {
    if !is_label(name, MAX_HOSTNAME) {
        return Err(Refusal::BadHostname);
    }
    if RESERVED.contains(&name) {
        return Err(Refusal::ReservedHostname(name.to_owned()));
    }
    Ok(())
}

/// A network's name follows the rules for hostnames.
///
/// # Errors
/// Says which rule is broken.
pub fn check_network_name(name: &str) -> Result<(), Refusal> {
    let problem = match check_hostname(name) {
        Ok(()) => return Ok(()),
        Err(Refusal::ReservedHostname(name)) => format!("{name:?} is reserved; choose another"),
        Err(_) => "a network's name is 1 to 63 lowercase letters, digits and inner hyphens".into(),
    };
    Err(Refusal::Invalid { key: "name".to_owned(), problem })
}

/// At most 10 tags of 1–32 such characters; one leading `#` is taken off.
///
/// # Errors
/// Says which rule is broken.
pub fn check_tags(tags: &[Cow<'_, str>]) -> Result<Vec<String>, Refusal> {
    if tags.len() > MAX_TAGS {
        return Err(Refusal::BadTags("more than 10 tags"));
    }
    let plain = tags.iter().map(|tag| tag.strip_prefix('#').unwrap_or(tag));
    plain
        .map(|tag| is_label(tag, MAX_TAG).then(|| tag.to_owned()))
        .collect::<Option<_>>()
        .ok_or(Refusal::BadTags("a tag is 1 to 32 lowercase letters, digits and inner hyphens"))
}

fn is_label(text: &str, max: usize) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty()
        && text.len() <= max
        && text.bytes().all(good)
        && !text.starts_with('-')
        && !text.ends_with('-')
}
