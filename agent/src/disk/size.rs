//! (pure) Sizes of disks: how they are written in settings, and which growth is possible.

/// Largest disk: the guest's file system takes some seconds to become this large.
pub const DISK_MB_MAX: u64 = 1 << 20;
/// Smallest disk: what `images/build` makes, from which all grow.
pub const DISK_MB_MIN: u64 = 256;

/// A size that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: `{text}` is not a size: a number and one of M, Mi, G, Gi, as in 512Mi or 2Gi")]
pub struct SizeError {
    setting: &'static str,
    text: String,
}

/// Reads a size: a whole number and a suffix. M is 10^6 and G 10^9 bytes, Mi 2^20 and Gi 2^30. The result is in MiB,
/// rounded down.
pub fn parse_mb(setting: &'static str, text: &str) -> Result<u64, SizeError> {
    let error = || SizeError { setting, text: text.to_owned() };
    let at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
    let (number, suffix) = text.split_at(at);
    let unit: u64 = match suffix {
        "M" => 1_000_000,
        "Mi" => 1 << 20,
        "G" => 1_000_000_000,
        "Gi" => 1 << 30,
        _ => return Err(error()),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(error)?;
    Ok(bytes >> 20)
}

/// Whether a disk of `has_mb` can become one of `wanted_mb`; in words why not.
pub fn check_growth(has_mb: u64, wanted_mb: u64) -> Result<(), String> {
    if wanted_mb < has_mb {
        return Err(format!("{wanted_mb} is less than the disk has, and disks only grow: at least {has_mb}"));
    }
    if DISK_MB_MAX < wanted_mb {
        return Err(format!("{wanted_mb} is too much: at most {DISK_MB_MAX}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_usual_suffixes() {
        for (text, mb) in [
            ("512Mi", 512),
            ("2Gi", 2048),
            ("2G", 1907),
            ("1000M", 953),
            ("0Mi", 0),
            ("17592186044415Mi", 17_592_186_044_415),
        ] {
            assert_eq!(parse_mb("S", text), Ok(mb), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_the_settings_name() {
        for text in
            ["", "2", "Gi", "2 Gi", "2gi", "2GB", "-2Gi", "2.5Gi", "2Ti", "99999999999999999999Gi", "2Giß"]
        {
            let error = parse_mb("HEARTH_DEFAULT_DISK", text).unwrap_err().to_string();
            assert!(error.starts_with("HEARTH_DEFAULT_DISK: ") && error.contains("Gi"), "{error}");
        }
        assert!(parse_mb("S", "18446744073709551615Gi").is_err(), "too many bytes for a number");
    }

    #[test]
    fn disks_only_grow_and_the_least_is_named() {
        assert_eq!(check_growth(2048, 2048), Ok(()));
        assert_eq!(check_growth(2048, DISK_MB_MAX), Ok(()));
        assert!(check_growth(2048, 2047).unwrap_err().contains("at least 2048"));
        assert!(check_growth(2048, DISK_MB_MAX + 1).unwrap_err().contains(&DISK_MB_MAX.to_string()));
    }
}
