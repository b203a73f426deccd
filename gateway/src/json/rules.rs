//! (pure) Rules that several requests share: environments, paths, names.

use crate::error::ApiError;
use crate::json::fields::{Fields, shown};
use std::collections::HashMap;

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
    let name = fields.text("template")?.unwrap_or_default();
    let usable = name.len() <= TEMPLATE_CHARS_MAX
        && !name.starts_with(['.', '_', '-'])
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if usable {
        Ok(name)
    } else {
        Err(fields.fault(
            "template",
            "must be 1 to 64 characters a-z A-Z 0-9 . _ - and start with a letter or a digit",
        ))
    }
}

/// A display name, empty when absent.
pub(crate) fn display_name(fields: &mut Fields) -> Result<String, ApiError> {
    let name = fields.text("name")?.unwrap_or_default();
    if name.chars().count() > NAME_CHARS_MAX {
        return Err(fields.fault("name", format!("over {NAME_CHARS_MAX} characters")));
    }
    if name.contains(char::is_control) {
        return Err(fields.fault("name", "must not contain control characters"));
    }
    Ok(name)
}

/// A caller's labels on a capsule.
pub(crate) fn metadata(fields: &mut Fields) -> Result<HashMap<String, String>, ApiError> {
    let metadata = fields.text_map("metadata")?.unwrap_or_default();
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
    Ok(metadata)
}

/// Refuses fields of the API that this version does not offer yet: ignoring them would do something else than was asked.
pub(crate) fn not_yet(fields: &mut Fields, names: &[&str]) -> Result<(), ApiError> {
    for name in names {
        if fields.any(name).is_some() {
            return Err(fields.fault(name, "not available yet; leave it out"));
        }
    }
    Ok(())
}

/// Refuses any network but `none`.
pub(crate) fn network(fields: &mut Fields) -> Result<(), ApiError> {
    match fields.any("network") {
        None => Ok(()),
        Some(serde_json::Value::String(network)) if network == "none" => Ok(()),
        Some(_) => Err(fields.fault("network", "only \"none\" is available on this host yet")),
    }
}
