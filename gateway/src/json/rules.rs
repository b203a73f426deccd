//! (pure) Rules that several requests share: environments, paths, names.

use crate::error::ApiError;
use crate::json::fields::{Fields, shown};
use hearth_proto::{
    metadata::ENVD_PORT,
    wire::agent::{NetworkPolicy, TimeoutAction},
};
use ipnet::Ipv4Net;
use std::{collections::HashMap, net::Ipv4Addr};

/// Names and values of one environment together. The guest's kernel would take more, but not much.
const ENV_BYTES_MAX: usize = 256 << 10;
/// As many as the guest takes for one run.
const ENV_COUNT_MAX: usize = 256;
/// Linux's PATH_MAX without its NUL.
const PATH_BYTES_MAX: usize = 4095;
const METADATA_ENTRIES_MAX: usize = 64;
const METADATA_KEY_CHARS_MAX: usize = 128;
const METADATA_VALUE_CHARS_MAX: usize = 1024;
const NAME_CHARS_MAX: usize = 128;
/// The public contract's limit on template names.
const TEMPLATE_CHARS_MAX: usize = 64;
/// As many as the agent takes.
const RANGES_MAX: usize = 64;
const PORTS_MAX: usize = 64;
/// Linux's LOGIN_NAME_MAX is far above any real name.
const USER_BYTES_MAX: usize = 64;
const TAG_BYTES_MAX: usize = 64;

/// An environment: names without `=`, blanks and control characters, values without NUL.
pub(crate) fn env(fields: &mut Fields, name: &str) -> Result<HashMap<String, String>, ApiError> {
    let env = fields.text_map(name)?.unwrap_or_default();
    if env.len() > ENV_COUNT_MAX {
        return Err(fields.fault(name, format!("over {ENV_COUNT_MAX} variables")));
    }
    let mut size: usize = 0;
    for (key, value) in &env {
        let usable =
            !key.is_empty() && !key.contains(|c: char| c == '=' || c.is_whitespace() || c.is_control());
        if !usable {
            let fault = format!("`{}` is not a usable variable name", shown(key));
            return Err(fields.fault(name, fault));
        }
        if value.contains('\0') {
            return Err(fields.fault(&format!("{name}.{}", shown(key)), "must not contain NUL"));
        }
        size = size.saturating_add(key.len()).saturating_add(value.len());
    }
    if size > ENV_BYTES_MAX {
        return Err(fields.fault(name, format!("over {ENV_BYTES_MAX} bytes in all")));
    }
    Ok(env)
}

/// A path in the guest, empty when absent.
pub(crate) fn path(fields: &mut Fields, name: &str) -> Result<String, ApiError> {
    let path = fields.text(name)?.unwrap_or_default();
    if path.contains('\0') {
        return Err(fields.fault(name, "must not contain NUL"));
    }
    if path.len() > PATH_BYTES_MAX {
        return Err(fields.fault(name, format!("over {PATH_BYTES_MAX} bytes")));
    }
    Ok(path)
}

/// A template's name, empty when absent (the default template).
pub(crate) fn template(fields: &mut Fields) -> Result<String, ApiError> {
    Ok(template_name(fields, "template")?.unwrap_or_default())
}

/// The name of a template or snapshot in a field; an empty one counts as absent.
pub(crate) fn template_name(fields: &mut Fields, field: &str) -> Result<Option<String>, ApiError> {
    let Some(name) = fields.text(field)?.filter(|name| !name.is_empty()) else { return Ok(None) };
    check_template_name(&name).map_err(|fault| fields.fault(field, fault))?;
    Ok(Some(name))
}

/// The public contract's form of template names.
pub(crate) fn check_template_name(name: &str) -> Result<(), &'static str> {
    let usable = (1..=TEMPLATE_CHARS_MAX).contains(&name.len())
        && !name.starts_with(['.', '_', '-'])
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if usable {
        Ok(())
    } else {
        Err("must be 1 to 64 characters a-z A-Z 0-9 . _ - and start with a letter or a digit")
    }
}

/// A display name.
pub(crate) fn display_name(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    let Some(name) = fields.text("name")? else { return Ok(None) };
    if name.chars().count() > NAME_CHARS_MAX {
        return Err(fields.fault("name", format!("over {NAME_CHARS_MAX} characters")));
    }
    if name.contains(char::is_control) {
        return Err(fields.fault("name", "must not contain control characters"));
    }
    Ok(Some(name))
}

/// A caller's labels on a capsule.
pub(crate) fn metadata(fields: &mut Fields) -> Result<Option<HashMap<String, String>>, ApiError> {
    let Some(metadata) = fields.text_map("metadata")? else { return Ok(None) };
    if metadata.len() > METADATA_ENTRIES_MAX {
        return Err(fields.fault("metadata", format!("over {METADATA_ENTRIES_MAX} entries")));
    }
    for (key, value) in &metadata {
        if key.is_empty() || key.chars().count() > METADATA_KEY_CHARS_MAX {
            return Err(
                fields.fault("metadata", format!("keys must be 1 to {METADATA_KEY_CHARS_MAX} characters"))
            );
        }
        if value.chars().count() > METADATA_VALUE_CHARS_MAX {
            let fault = format!("over {METADATA_VALUE_CHARS_MAX} characters");
            return Err(fields.fault(&format!("metadata.{}", shown(key)), fault));
        }
        // Postgres keeps no NUL in text or JSON.
        if key.contains('\0') || value.contains('\0') {
            return Err(fields.fault("metadata", "must not contain NUL"));
        }
    }
    Ok(Some(metadata))
}

/// What a capsule may reach: `"none"`, `"internet"`, or an object with `internet`, `allow` and `deny`.
pub(crate) fn network(fields: &mut Fields) -> Result<Option<NetworkPolicy>, ApiError> {
    if fields.is_text("network") {
        let policy = NetworkPolicy::default();
        return match fields.text("network")?.as_deref() {
            Some("none") => Ok(Some(policy)),
            Some("internet") => Ok(Some(NetworkPolicy { internet: true, ..policy })),
            _ => Err(fields.fault(
                "network",
                r#"must be "none", "internet" or an object with internet, allow and deny"#,
            )),
        };
    }
    let Some(mut object) = fields.object("network")? else { return Ok(None) };
    Ok(Some(NetworkPolicy {
        internet: object.flag("internet")?.unwrap_or(false),
        allow: ranges(&mut object, "allow")?,
        deny: ranges(&mut object, "deny")?,
        best_effort: false,
    }))
}

/// IPv4 ranges such as `203.0.113.0/24`; an address alone is one too.
fn ranges(fields: &mut Fields, name: &str) -> Result<Vec<String>, ApiError> {
    let ranges = fields.texts(name)?.unwrap_or_default();
    if ranges.len() > RANGES_MAX {
        return Err(fields.fault(name, format!("over {RANGES_MAX} ranges")));
    }
    let mut checked = Vec::with_capacity(ranges.len());
    for (index, range) in ranges.into_iter().enumerate() {
        let parsed = range.parse::<Ipv4Net>().or_else(|_| range.parse::<Ipv4Addr>().map(Ipv4Net::from));
        match parsed {
            Ok(net) => checked.push(net.trunc().to_string()),
            Err(_) => {
                let fault = format!("`{}` is not an IPv4 range such as 203.0.113.0/24", shown(&range));
                return Err(fields.fault(&format!("{name}[{index}]"), fault));
            }
        }
    }
    Ok(checked)
}

/// What happens to a capsule when its timeout is over.
pub(crate) fn timeout_action(fields: &mut Fields) -> Result<Option<TimeoutAction>, ApiError> {
    match fields.text("timeout_action")?.as_deref() {
        None => Ok(None),
        Some("pause") => Ok(Some(TimeoutAction::Pause)),
        Some("destroy") => Ok(Some(TimeoutAction::Destroy)),
        Some(_) => Err(fields.fault("timeout_action", r#"must be "pause" or "destroy""#)),
    }
}

/// Ports of a capsule, each once.
pub(crate) fn ports(fields: &mut Fields, name: &str) -> Result<Option<Vec<u32>>, ApiError> {
    let Some(ports) = fields.numbers(name, 1, u64::from(u16::MAX))? else { return Ok(None) };
    let mut ports: Vec<u32> = ports.into_iter().filter_map(|port| u32::try_from(port).ok()).collect();
    ports.sort_unstable();
    ports.dedup();
    if ports.len() > PORTS_MAX {
        return Err(fields.fault(name, format!("over {PORTS_MAX} ports")));
    }
    if ports.contains(&u32::from(ENVD_PORT)) {
        return Err(fields.fault(name, format!("{ENVD_PORT} is the guest daemon's own and is never open")));
    }
    Ok(Some(ports))
}

/// A user of the guest, empty when absent.
pub(crate) fn user(fields: &mut Fields) -> Result<String, ApiError> {
    let user = fields.text("user")?.unwrap_or_default();
    if user.len() > USER_BYTES_MAX || user.contains(char::is_control) {
        return Err(fields.fault("user", "not a user's name"));
    }
    Ok(user)
}

/// A process's tag.
pub(crate) fn tag(fields: &mut Fields) -> Result<String, ApiError> {
    let tag = fields.text("tag")?.unwrap_or_default();
    let usable = tag.len() <= TAG_BYTES_MAX
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && (tag.is_empty() || !tag.bytes().all(|b| b.is_ascii_digit()));
    if usable {
        Ok(tag)
    } else {
        Err(fields.fault("tag", "must be 1 to 64 characters a-z A-Z 0-9 . _ - and not digits only"))
    }
}

/// Refuses any network but `none`.
pub(crate) fn no_network(fields: &mut Fields) -> Result<(), ApiError> {
    match network(fields)? {
        None => Ok(()),
        Some(policy) if policy == NetworkPolicy::default() => Ok(()),
        Some(_) => Err(fields.fault("network", "a one-shot run has none; create a capsule with a network")),
    }
}
