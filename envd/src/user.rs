//! Users and groups from /etc/passwd and /etc/group.
//!
//! Read by hand: a static binary has no name service switch, and the files are all a capsule has.

use std::{fs, io, path::Path};

/// A user of the guest with every group it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids, the primary one not repeated.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
}

/// Why a user was not found.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// No line of /etc/passwd has the name.
    #[error("user: there is no user {0:?}")]
    Unknown(String),
    /// A file could not be read.
    #[error("/etc/passwd and /etc/group cannot be read")]
    Read(#[from] io::Error),
}

/// Looks a user up by login name.
pub fn look_up(name: &str) -> Result<User, UserError> {
    Names::read()?.user(name).ok_or_else(|| UserError::Unknown(name.to_owned()))
}

/// The id of the group `name`, if there is one.
pub fn group_id(name: &str) -> Result<Option<u32>, UserError> {
    Ok(Names::read()?.gid(name))
}

/// The names of all users and groups, for those who show or read many.
#[derive(Debug)]
pub struct Names {
    passwd: String,
    group: String,
}

impl Names {
    /// Reads the files.
    pub fn read() -> Result<Self, UserError> {
        Ok(Self { passwd: read(Path::new("/etc/passwd"))?, group: read(Path::new("/etc/group"))? })
    }

    /// The names in these files' contents.
    pub fn of(passwd: &str, group: &str) -> Self {
        Self { passwd: passwd.to_owned(), group: group.to_owned() }
    }

    /// The user with this name.
    pub fn user(&self, name: &str) -> Option<User> {
        find(&self.passwd, &self.group, name)
    }

    /// The first user with this id.
    pub fn user_name(&self, uid: u32) -> Option<&str> {
        named(&self.passwd, uid)
    }

    /// The first group with this id.
    pub fn group_name(&self, gid: u32) -> Option<&str> {
        named(&self.group, gid)
    }

    /// The id of a group.
    pub fn gid(&self, name: &str) -> Option<u32> {
        self.group.lines().find_map(|line| {
            let mut fields = line.split(':');
            let found = fields.next() == Some(name) && !name.is_empty();
            found.then(|| fields.nth(1)?.parse().ok()).flatten()
        })
    }
}

/// (pure) The name of the first entry with this id; both files have it in the third field.
fn named(file: &str, id: u32) -> Option<&str> {
    file.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        (fields.nth(1)?.parse() == Ok(id)).then_some(name)
    })
}

/// Names are bytes to the kernel; a stray byte in a comment field must not make every user unknown.
fn read(path: &Path) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned())
}

/// (pure) The user `name` of these files' contents (passwd(5), group(5)); malformed lines are passed over.
pub fn find(passwd: &str, group: &str, name: &str) -> Option<User> {
    let mut user = passwd.lines().filter_map(entry).find(|user| user.name == name)?;
    user.groups =
        group.lines().filter_map(|line| member(line, name)).filter(|gid| *gid != user.gid).collect();
    user.groups.sort_unstable();
    user.groups.dedup();
    Some(user)
}

fn entry(line: &str) -> Option<User> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let mut fields = fields.skip(1);
    let uid = fields.next()?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let mut fields = fields.skip(1);
    let or = |text: Option<&str>, default: &str| {
        text.filter(|text| !text.is_empty()).unwrap_or(default).to_owned()
    };
    Some(User {
        name: name.to_owned(),
        uid,
        gid,
        groups: Vec::new(),
        home: or(fields.next(), "/"),
        shell: or(fields.next(), "/bin/sh"),
    })
}

fn member(line: &str, name: &str) -> Option<u32> {
    let mut fields = line.split(':').skip(2);
    let gid = fields.next()?.parse().ok()?;
    fields.next()?.split(',').any(|member| member.trim() == name).then_some(gid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n# comment\nbroken:x:1\nuser:x:1000:1000:,,,:/home/user:\nnohome:x:5:60::";
    const GROUP: &str =
        "root:x:0:\nsudo:x:27:user,other\nvideo:x:44:other\nuser:x:1000:user\ndocker:x:999:other, user\n";

    #[test]
    fn a_user_has_its_groups_once_and_without_the_primary_one() {
        let user = find(PASSWD, GROUP, "user").unwrap();
        assert_eq!((user.uid, user.gid, user.groups), (1000, 1000, vec![27, 999]));
        assert_eq!((user.home.as_str(), user.shell.as_str()), ("/home/user", "/bin/sh"));
    }

    #[test]
    fn empty_fields_have_defaults() {
        let user = find(PASSWD, GROUP, "nohome").unwrap();
        assert_eq!((user.uid, user.gid, user.home.as_str()), (5, 60, "/"));
        assert_eq!(find(PASSWD, "", "root").unwrap().groups, Vec::<u32>::new());
    }

    #[test]
    fn names_and_ids_are_found_both_ways() {
        let names = Names::of(PASSWD, GROUP);
        assert_eq!((names.user_name(1000), names.user_name(7)), (Some("user"), None));
        assert_eq!((names.group_name(44), names.group_name(5)), (Some("video"), None));
        assert_eq!((names.gid("docker"), names.gid("nope"), names.gid("")), (Some(999), None, None));
    }

    #[test]
    fn unknown_and_malformed_users_are_absent() {
        for name in ["", "broken", "# comment", "nobody", "roo"] {
            assert_eq!(find(PASSWD, GROUP, name), None, "{name}");
        }
    }
}
