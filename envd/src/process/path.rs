//! (pure) Where a process starts: `~` and relative paths begin at the user's home.

/// The working directory that `cwd` asks for, for a user whose home is `home`. `~other` is a plain name, not a user.
pub fn resolve(cwd: &str, home: &str) -> String {
    let below = |rest: &str| {
        let rest = rest.trim_start_matches('/');
        if rest.is_empty() { home.to_owned() } else { format!("{}/{rest}", home.trim_end_matches('/')) }
    };
    match cwd {
        "" | "~" => home.to_owned(),
        _ if cwd.starts_with('/') => cwd.to_owned(),
        _ => below(cwd.strip_prefix("~/").unwrap_or(cwd)),
    }
}

#[cfg(test)]
mod tests {
    use super::resolve;

    #[test]
    fn paths_begin_at_the_home_unless_absolute() {
        for (cwd, path) in [
            ("", "/home/user"),
            ("~", "/home/user"),
            ("~/", "/home/user"),
            ("~/a/b", "/home/user/a/b"),
            ("~//a", "/home/user/a"),
            ("a", "/home/user/a"),
            ("./a", "/home/user/./a"),
            ("..", "/home/user/.."),
            ("~root", "/home/user/~root"),
            ("/", "/"),
            ("/tmp", "/tmp"),
        ] {
            assert_eq!(resolve(cwd, "/home/user"), path, "{cwd:?}");
        }
        assert_eq!(resolve("a", "/"), "/a");
    }
}
