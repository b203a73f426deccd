//! `/v1/capsules`: create, list, read, change and destroy.

use crate::{
    app::App,
    auth::Caller,
    config::Config,
    error::ApiError,
    idempotency,
    json::{body::JsonBody, fields::Fields, query::Query, rules},
    middleware::Scope,
    ops::capsules::{self, Filter, NewCapsule},
    v1::{
        CapsulePath,
        capsule_body::{CapsuleBody, Status},
        created,
    },
};
use axum::{Extension, Json, extract::State, response::Response};
use hearth_proto::{
    id::CapsuleId,
    wire::pool::{Metadata, PublicPorts, UpdateCapsuleRequest},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// Where a list goes on; the body is an array, which has no room for it.
const NEXT_CURSOR: HeaderName = HeaderName::from_static("x-next-cursor");
const LIST_MAX: u64 = 10_000;
const TIMEOUT_SEC_MAX: u64 = 365 * 86_400;
const VCPUS_MAX: u64 = 1_024;
const MEMORY_MB_MAX: u64 = 16 << 20;
const DISK_MB_MAX: u64 = 16 << 20;

/// Creates a capsule; it runs when the answer comes.
pub(crate) async fn create(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let mut capsule = read(&mut body.fields_or_none()?, &app.config)?;
    capsule.idempotency_key = idempotency::key_text(&headers)?;
    let record = capsules::create(&app, &scope, caller, capsule).await?;
    created(&format!("/v1/capsules/{}", record.capsule_id), &CapsuleBody::from(record))
}

/// The caller's capsules, newest first.
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    query: Query,
) -> Result<(HeaderMap, Json<Vec<CapsuleBody>>), ApiError> {
    let page = capsules::list(&app, &scope, caller, filter(query)?).await?;
    let mut headers = HeaderMap::new();
    if !page.next_cursor.is_empty()
        && let Ok(cursor) = HeaderValue::from_str(&page.next_cursor)
    {
        headers.insert(NEXT_CURSOR, cursor);
    }
    Ok((headers, Json(page.capsules.into_iter().map(CapsuleBody::listed).collect())))
}

/// One capsule, in any state.
pub(crate) async fn get(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    CapsulePath(capsule): CapsulePath,
) -> Result<Json<CapsuleBody>, ApiError> {
    Ok(Json(capsules::get(&app, &scope, caller, capsule).await?.into()))
}

/// Changes a capsule's settings; what the body does not name stays.
pub(crate) async fn update(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    CapsulePath(capsule): CapsulePath,
    body: JsonBody,
) -> Result<Json<CapsuleBody>, ApiError> {
    let update = read_update(&mut body.fields()?, caller, capsule)?;
    Ok(Json(capsules::update(&app, &scope, update).await?.into()))
}

/// Destroys a capsule, or confirms that it is destroyed.
pub(crate) async fn destroy(
    State(app): State<App>,
    caller: Caller,
    Extension(scope): Extension<Scope>,
    CapsulePath(capsule): CapsulePath,
) -> Result<StatusCode, ApiError> {
    capsules::destroy(&app, &scope, caller, capsule).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The compatible API takes numbers of 0 and less as "the default".
fn read(fields: &mut Fields, config: &Config) -> Result<NewCapsule, ApiError> {
    Ok(NewCapsule {
        template: rules::template(fields)?,
        vcpus: default_or(fields, "vcpus", VCPUS_MAX)?.try_into().unwrap_or(0),
        memory_mb: default_or(fields, "memory_mb", MEMORY_MB_MAX)?,
        disk_mb: default_or(fields, "disk_mb", DISK_MB_MAX)?,
        timeout_sec: default_or(fields, "timeout_sec", TIMEOUT_SEC_MAX)?,
        timeout_action: rules::timeout_action(fields)?.unwrap_or_default(),
        auto_resume: fields.flag("auto_resume")?.unwrap_or(false),
        network: rules::network(fields)?.unwrap_or_else(|| config.capsule_network.policy()),
        public_ports: rules::ports(fields, "public_ports")?.unwrap_or_default(),
        env: rules::env(fields, "env")?,
        metadata: rules::metadata(fields)?.unwrap_or_default(),
        name: rules::display_name(fields)?.unwrap_or_default(),
        idempotency_key: String::new(),
    })
}

fn read_update(
    fields: &mut Fields,
    caller: Caller,
    capsule: CapsuleId,
) -> Result<UpdateCapsuleRequest, ApiError> {
    let update = UpdateCapsuleRequest {
        team_id: caller.team.to_string(),
        capsule_id: capsule.to_string(),
        timeout_sec: fields.number("timeout_sec", 0, TIMEOUT_SEC_MAX)?,
        timeout_action: rules::timeout_action(fields)?.map(Into::into),
        disk_mb: fields.number("disk_mb", 1, DISK_MB_MAX)?,
        auto_resume: fields.flag("auto_resume")?,
        name: rules::display_name(fields)?,
        metadata: rules::metadata(fields)?.map(|entries| Metadata { entries }),
        public_ports: rules::ports(fields, "public_ports")?.map(|ports| PublicPorts { ports }),
    };
    let nothing = UpdateCapsuleRequest {
        team_id: update.team_id.clone(),
        capsule_id: update.capsule_id.clone(),
        ..Default::default()
    };
    if update == nothing {
        return Err(ApiError::invalid(
            "the body names nothing to change: timeout_sec, timeout_action, disk_mb, auto_resume, name, metadata, public_ports",
        ));
    }
    Ok(update)
}

fn filter(mut query: Query) -> Result<Filter, ApiError> {
    let mut states = Vec::new();
    for word in query.text("status").unwrap_or_default().split(',').filter(|word| !word.is_empty()) {
        let known = Status::states(word).ok_or_else(|| {
            query.fault("status", "must be of starting, running, paused, stopped, missing, error")
        })?;
        states.extend_from_slice(known);
    }
    let limit = query.number("limit", 1, LIST_MAX)?.unwrap_or(0);
    Ok(Filter {
        states,
        limit: u32::try_from(limit).unwrap_or(0),
        cursor: query.text("cursor").unwrap_or_default(),
        metadata: query.below("metadata."),
    })
}

fn default_or(fields: &mut Fields, name: &str, max: u64) -> Result<u64, ApiError> {
    match fields.integer(name)?.map(|number| u64::try_from(number).unwrap_or(0)) {
        None => Ok(0),
        Some(number) if number <= max => Ok(number),
        Some(number) => Err(fields.fault(name, format!("must be at most {max}, got {number}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_proto::wire::agent::{NetworkPolicy, TimeoutAction};

    fn parsed(body: &str) -> Result<NewCapsule, ApiError> {
        read(&mut Fields::parse(body.as_bytes()).expect("an object"), &Config::for_tests())
    }

    #[test]
    fn requests_are_checked_field_by_field() {
        for fine in ["{}", r#"{"vcpus":0,"memory_mb":-1,"timeout_sec":0,"template":"minimal","unknown":{}}"#]
        {
            assert!(parsed(fine).is_ok(), "{fine}");
        }
        for (body, field) in [
            (r#"{"vcpus":"2"}"#, "vcpus: expected a whole number"),
            (r#"{"vcpus":5000}"#, "vcpus: must be at most 1024"),
            (r#"{"template":"no/path"}"#, "template: must be"),
            (r#"{"template":"-x"}"#, "template: must be"),
            (r#"{"metadata":{"k":1}}"#, "metadata.k: expected a string"),
            (r#"{"env":{"A=B":"1"}}"#, "env: `A=B` is not a usable variable name"),
            (r#"{"env":{"A":"\u0000"}}"#, "env.A: must not contain NUL"),
            (r#"{"auto_resume":1}"#, "auto_resume: expected true or false"),
            (r#"{"network":"lan"}"#, "network: must be \"none\", \"internet\""),
            (r#"{"network":{"allow":["x"]}}"#, "network.allow[0]: `x` is not an IPv4 range"),
            (r#"{"timeout_action":"stop"}"#, "timeout_action: must be \"pause\" or \"destroy\""),
            (r#"{"public_ports":[0]}"#, "public_ports[0]: must be from 1 to 65535"),
            (r#"{"name":7}"#, "name: expected a string"),
        ] {
            let message = parsed(body).expect_err(body).to_string();
            assert!(message.starts_with(field), "{body}: {message}");
        }
    }

    #[test]
    fn everything_that_is_asked_for_is_passed_on() {
        let body = r#"{"disk_mb":2048,"timeout_sec":60,"timeout_action":"destroy","auto_resume":true,
            "network":{"internet":true,"deny":["203.0.113.0/24"]},"public_ports":[8080,8080],"name":"mine"}"#;
        let capsule = parsed(body).expect("fine");
        assert_eq!((capsule.disk_mb, capsule.timeout_action), (2048, TimeoutAction::Destroy));
        assert_eq!(capsule.public_ports, [8080]);
        let deny = vec!["203.0.113.0/24".to_owned()];
        assert_eq!(capsule.network, NetworkPolicy { internet: true, deny, ..NetworkPolicy::default() });
        let default = parsed("{}").expect("fine").network;
        assert_eq!(default, NetworkPolicy { internet: true, best_effort: true, ..NetworkPolicy::default() });
    }

    #[test]
    fn an_update_names_something() {
        let update = |body: &str| {
            read_update(
                &mut Fields::parse(body.as_bytes()).expect("an object"),
                Caller::for_tests(),
                CapsuleId::new(),
            )
        };
        assert!(update("{}").expect_err("nothing").to_string().contains("nothing to change"));
        let named = update(r#"{"timeout_sec":0,"metadata":{}}"#).expect("fine");
        assert_eq!((named.timeout_sec, named.metadata), (Some(0), Some(Metadata::default())));
        assert!(update(r#"{"disk_mb":0}"#).is_err());
    }

    #[test]
    fn filters_are_checked() {
        let of = |text: &str| filter(Query::parse(text));
        let wanted = of("status=running,paused&limit=5&metadata.a=b%20c&cursor=x").expect("fine");
        assert_eq!((wanted.limit, wanted.cursor.as_str(), wanted.states.len()), (5, "x", 4));
        assert_eq!(wanted.metadata["a"], "b c");
        assert!(of("status=asleep").expect_err("refused").to_string().starts_with("status: must be of"));
        assert!(of("limit=0").is_err());
    }
}
