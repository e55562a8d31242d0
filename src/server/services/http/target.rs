//! Request targets: origin form, absolute form, and the asterisk of `OPTIONS` (RFC 9112 §3.2).

use super::Refusal;

/// A request target taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target<'b> {
    pub path: &'b str,
    pub query: &'b str,
    /// Bytes of the target before its query.
    pub before_query: usize,
}

impl<'b> Target<'b> {
    /// Takes the target of a request with this method apart.
    pub(super) fn parse(method: &str, target: &'b str) -> Result<Target<'b>, Refusal> {
        if !target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
            return Err(Refusal::bad("the request target holds a character that has no place there"));
        }
        let (before, query) = target.split_once('?').unwrap_or((target, ""));
        let path = if before.starts_with('/') {
            before
        } else if target == "*" && method == "OPTIONS" {
            target
        } else {
            path_of_absolute(before).ok_or(Refusal::bad("the request target is neither a path nor a URI"))?
        };
        Ok(Target { path, query, before_query: before.len() })
    }
}

/// The path in `scheme://authority/path`; an empty one is the root.
fn path_of_absolute(uri: &str) -> Option<&str> {
    let (scheme, rest) = uri.split_once("://")?;
    let sound = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    match path {
        _ if !sound || authority.is_empty() => None,
        "" => Some("/"),
        path => Some(path),
    }
}
