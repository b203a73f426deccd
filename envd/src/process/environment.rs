//! (pure) The environment of a new process.

use crate::user::User;
use std::collections::{BTreeMap, HashMap};

/// What programs are searched in, in the guest: Debian's own order.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A name or value that execve(2) cannot carry.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("env: {0:?} is not a valid name or its value has a NUL byte")]
pub struct BadVariable(pub String);

/// The user's own variables, over them the capsule's, over them the request's.
pub fn build(
    user: &User,
    capsule: &HashMap<String, String>,
    request: HashMap<String, String>,
) -> Result<BTreeMap<String, String>, BadVariable> {
    let own = [
        ("HOME", user.home.as_str()),
        ("USER", user.name.as_str()),
        ("LOGNAME", user.name.as_str()),
        ("SHELL", user.shell.as_str()),
        ("PATH", PATH),
        ("LANG", "C.UTF-8"),
    ];
    let mut variables: BTreeMap<_, _> =
        own.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
    variables.extend(capsule.iter().map(|(name, value)| (name.clone(), value.clone())));
    variables.extend(request);
    check(variables.iter())?;
    Ok(variables)
}

/// Refuses variables that execve(2) cannot carry.
pub fn check<'a>(mut variables: impl Iterator<Item = (&'a String, &'a String)>) -> Result<(), BadVariable> {
    let bad = |(name, value): &(&String, &String)| {
        name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')
    };
    variables.find(bad).map_or(Ok(()), |(name, _)| Err(BadVariable(name.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_request_outranks_the_capsule_and_the_capsule_the_user() {
        let user = crate::user::find("u:x:7:7::/h:/bin/zsh", "", "u").unwrap();
        let built =
            build(&user, &map(&[("A", "1"), ("B", "1"), ("HOME", "/c")]), map(&[("B", "2")])).unwrap();
        let get = |name: &str| built.get(name).map(String::as_str);
        assert_eq!((get("A"), get("B"), get("HOME")), (Some("1"), Some("2"), Some("/c")));
        assert_eq!((get("USER"), get("SHELL"), get("PATH")), (Some("u"), Some("/bin/zsh"), Some(PATH)));
    }

    #[test]
    fn what_execve_cannot_carry_is_refused_by_name() {
        for (name, value) in [("", "x"), ("a=b", "x"), ("a\0", "x"), ("a", "\0")] {
            assert_eq!(check(map(&[(name, value)]).iter()), Err(BadVariable(name.to_owned())));
        }
    }
}
