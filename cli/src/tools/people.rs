//! `hearth teams` and `hearth users`.

use super::{
    args::{TeamsArgs, TeamsCommand, UsersArgs, UsersCommand},
    table,
};
use crate::client::Client;
use reqwest::Method;
use serde_json::{Value, json};
use std::process::ExitCode;

/// Teams, their keys and their members.
pub async fn teams(args: TeamsArgs) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.client)?;
    let at = |team: &str, rest: &str| format!("/v1/admin/teams/{team}{rest}");
    let (answer, columns): (Value, &[(&str, &str)]) = match args.command {
        TeamsCommand::Ls => (client.get("/v1/admin/teams").await?, &TEAM),
        TeamsCommand::Create { name } => {
            (client.post("/v1/admin/teams", &json!({ "name": name })).await?, &TEAM)
        }
        TeamsCommand::Rm { team } => (client.call(Method::DELETE, &at(&team, ""), None).await?, &[]),
        TeamsCommand::Key { team, name } => {
            let body = name.map_or_else(|| json!({}), |name| json!({ "name": name }));
            (client.post(&at(&team, "/api-keys"), &body).await?, &[("ID", "id"), ("KEY", "key")])
        }
        TeamsCommand::Members { team } => (client.get(&at(&team, "/members")).await?, &MEMBER),
        TeamsCommand::Add { team, user, role } => {
            let path = at(&team, &format!("/members/{user}"));
            (client.call(Method::PUT, &path, Some(&json!({ "role": role }))).await?, &[])
        }
        TeamsCommand::Remove { team, user } => {
            (client.call(Method::DELETE, &at(&team, &format!("/members/{user}")), None).await?, &[])
        }
    };
    Ok(show(&answer, columns, args.client.json))
}

const TEAM: [(&str, &str); 5] =
    [("TEAM", "id"), ("NAME", "name"), ("KEYS", "keys"), ("MEMBERS", "members"), ("CREATED", "created_at")];
const MEMBER: [(&str, &str); 4] =
    [("USER", "user_id"), ("EMAIL", "email"), ("NAME", "name"), ("ROLE", "role")];
const USER: [(&str, &str); 4] =
    [("USER", "id"), ("EMAIL", "email"), ("NAME", "name"), ("CREATED", "created_at")];

/// Users.
pub async fn users(args: UsersArgs) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.client)?;
    let (answer, columns): (Value, &[(&str, &str)]) = match args.command {
        UsersCommand::Ls => (client.get("/v1/admin/users").await?, &USER),
        UsersCommand::Create { email, name } => {
            let body = json!({ "email": email, "name": name.unwrap_or_default() });
            (client.post("/v1/admin/users", &body).await?, &USER)
        }
        UsersCommand::Rm { user } => {
            (client.call(Method::DELETE, &format!("/v1/admin/users/{user}"), None).await?, &[])
        }
    };
    Ok(show(&answer, columns, args.client.json))
}

/// A list, one thing, or nothing to show.
pub fn show(answer: &Value, columns: &[(&str, &str)], as_json: bool) -> ExitCode {
    match answer {
        Value::Null => println!("done"),
        answer if as_json => println!("{answer:#}"),
        answer => {
            let one = std::slice::from_ref(answer);
            let rows = answer.as_array().map_or(one, Vec::as_slice);
            let cells: Vec<Vec<String>> = rows
                .iter()
                .map(|row| columns.iter().map(|(_, field)| table::text(row, field)).collect())
                .collect();
            let heads: Vec<&str> = columns.iter().map(|(head, _)| *head).collect();
            table::print(&heads, &cells);
        }
    }
    ExitCode::SUCCESS
}
