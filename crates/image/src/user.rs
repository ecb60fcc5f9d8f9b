//! Whom an image wants its programs to run as: names looked up in the image's own lists of users and groups.
//!
//! As container runtimes do it: a user without an entry in the list has group 0.

/// A user of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Name, where the list of users has it.
    pub name: Option<String>,
    /// Home, where that list has it.
    pub home: Option<String>,
}

/// Looks up `user`, `user:group`, or numbers in place of either; empty is root.
pub fn resolve(wanted: &str, passwd: &str, group: &str) -> Result<Account, UserError> {
    let (user, of_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let mut account = match user.parse::<u32>() {
        Ok(uid) => by_uid(passwd, uid),
        Err(_) => by_name(passwd, user).ok_or_else(|| UserError::User(user.to_owned()))?,
    };
    if let Some(name) = of_group.filter(|g| !g.is_empty()) {
        account.gid = match name.parse() {
            Ok(gid) => gid,
            Err(_) => gid_of(group, name).ok_or_else(|| UserError::Group(name.to_owned()))?,
        };
    }
    Ok(account)
}

/// A user by number; group 0 where the list does not know it.
pub fn by_uid(passwd: &str, uid: u32) -> Account {
    let known = accounts(passwd).find(|account| account.uid == uid);
    known.unwrap_or(Account { uid, gid: 0, name: None, home: None })
}

fn by_name(passwd: &str, name: &str) -> Option<Account> {
    accounts(passwd).find(|account| account.name.as_deref() == Some(name))
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account> {
    passwd.lines().filter_map(|line| {
        let mut columns = line.split(':');
        let name = columns.next()?.trim();
        let uid = columns.nth(1)?.parse().ok()?;
        let gid = columns.next()?.parse().ok()?;
        let home = columns.nth(1).filter(|home| home.starts_with('/')).map(str::to_owned);
        Some(Account { uid, gid, name: Some(name.to_owned()), home })
    })
}

fn gid_of(group: &str, name: &str) -> Option<u32> {
    group.lines().find_map(|line| {
        let mut columns = line.split(':');
        let found = columns.next()?;
        let gid = columns.nth(1)?.parse().ok()?;
        (found == name).then_some(gid)
    })
}

/// A user or group that the image does not know. In containerd's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// No such user.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    User(String),
    /// No such group.
    #[error("unable to find group {0}: no matching entries in group file")]
    Group(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\npostgres:x:999:998::/var/lib/postgresql:/bin/bash\n";
    const GROUP: &str = "root:x:0:\npostgres:x:998:\nssl-cert:x:101:postgres\n";

    #[test]
    fn users_and_groups_are_found_by_name_and_by_number() {
        let ids = |wanted: &str| resolve(wanted, PASSWD, GROUP).map(|a| (a.uid, a.gid));
        assert_eq!(ids(""), Ok((0, 0)));
        assert_eq!(ids("postgres"), Ok((999, 998)));
        assert_eq!(ids("999"), Ok((999, 998)));
        assert_eq!(ids("1234"), Ok((1234, 0)));
        assert_eq!(ids("postgres:ssl-cert"), Ok((999, 101)));
        assert_eq!(ids("1234:5678"), Ok((1234, 5678)));
        assert_eq!(ids(":101"), Ok((0, 101)));
        assert_eq!(ids("nobody"), Err(UserError::User("nobody".into())));
        assert_eq!(ids("postgres:wheel"), Err(UserError::Group("wheel".into())));
        assert_eq!(resolve("999", PASSWD, GROUP).map(|a| a.name), Ok(Some("postgres".to_owned())));
        assert_eq!(by_uid(PASSWD, 999).home.as_deref(), Some("/var/lib/postgresql"));
        assert_eq!(resolve("a", "", "").map(|a| a.uid), Err(UserError::User("a".into())));
    }
}
