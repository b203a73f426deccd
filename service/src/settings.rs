//! Settings of a role from the environment alone, for a program that runs several roles.

use clap::error::{ContextKind, ContextValue};
use std::error::Error;

/// The settings of the environment, and defaults for the rest.
///
/// # Errors
/// A variable with a value that cannot be; the text names it.
pub fn from_env<A: clap::Args>() -> Result<A, String> {
    let mut command = A::augment_args(clap::Command::new("hearth"));
    // Else its arguments cannot be shown.
    command.build();
    command
        .clone()
        .try_get_matches_from(["hearth"])
        .and_then(|matches| A::from_arg_matches(&matches))
        .map_err(|error| named(&command, &error))
}

/// An error about an option of a command that was built, told as one about its variable: `HEARTH_PARKED: "many": invalid digit found in string`.
fn named(command: &clap::Command, error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        Some(_) | None => None,
    };
    let option = context(ContextKind::InvalidArg);
    let argument = command.get_arguments().find(|argument| option == Some(argument.to_string().as_str()));
    let Some(variable) = argument.and_then(clap::Arg::get_env) else { return error.to_string() };
    let value = context(ContextKind::InvalidValue).unwrap_or_default();
    let why = error.source().map_or_else(|| error.kind().to_string(), ToString::to_string);
    format!("{}: {value:?}: {why}", variable.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Sample {
        /// A number.
        #[arg(long, env = "HEARTH_SAMPLE_NUMBER", default_value_t = 7)]
        number: u16,
    }

    #[test]
    fn a_wrong_value_is_named_by_its_variable() {
        let mut command = <Sample as clap::CommandFactory>::command();
        command.build();
        let error = command.clone().try_get_matches_from(["x", "--number", "many"]).expect_err("refused");
        let text = named(&command, &error);
        assert_eq!(text, "HEARTH_SAMPLE_NUMBER: \"many\": invalid digit found in string");
    }
}
