//! Jupyter messages as our kernels send and take them (messaging protocol 5.4,
//! <https://jupyter-client.readthedocs.io/en/latest/messaging.html>). Pure.
//!
//! Contents use the types of `jupyter_protocol` where those lose nothing; displays are kept as they are,
//! since its media types rewrite bundles. Unknown members are ignored, unknown message types skipped.

use super::Source;
use jupyter_protocol::{ErrorOutput, ExecuteRequest, ReplyStatus, Stdio, StreamContent};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};
use std::{borrow::Cow, collections::HashMap};

/// A message from a kernel, with the id of the request it answers.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) parent: String,
    pub(crate) content: Content,
}

/// What a kernel can say.
#[derive(Debug)]
pub(crate) enum Content {
    Stream(Source, String),
    /// A MIME bundle; whether it is the value of the cell.
    Display(Map<String, Value>, bool),
    Error(ErrorOutput),
    Reply {
        ok: bool,
        count: u32,
    },
    /// Answer to one of our own requests.
    Done {
        ok: bool,
    },
    /// The kernel is ready.
    Ready,
    /// A message that has no meaning for a run: clear_output, comm_open, …
    Other,
}

/// A message that is not what the protocol says.
#[derive(Debug, thiserror::Error)]
#[error("not a message: {0}")]
pub(crate) struct BadMessage(#[from] serde_json::Error);

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    header: Head<'a>,
    #[serde(borrow, default)]
    parent_header: Parent<'a>,
    #[serde(borrow)]
    content: &'a RawValue,
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    msg_type: Cow<'a, str>,
}

#[derive(Deserialize, Default)]
struct Parent<'a> {
    #[serde(borrow, default)]
    msg_id: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Bundle {
    #[serde(default)]
    data: Map<String, Value>,
}

/// `execute_reply`, and our own requests' replies: what of them is of use here. (jupyter_protocol's type collects all
/// other members first.)
#[derive(Deserialize)]
struct Outcome {
    status: ReplyStatus,
    #[serde(default)]
    execution_count: u32,
}

impl Message {
    /// Reads one frame.
    pub(crate) fn parse(frame: &[u8]) -> Result<Self, BadMessage> {
        let envelope: Envelope<'_> = serde_json::from_slice(frame)?;
        let text = envelope.content.get();
        let content = match envelope.header.msg_type.as_ref() {
            "stream" => {
                let StreamContent { name, text } = serde_json::from_str(text)?;
                let source = match name {
                    Stdio::Stdout => Source::Stdout,
                    Stdio::Stderr => Source::Stderr,
                };
                Content::Stream(source, text)
            }
            "execute_result" => Content::Display(serde_json::from_str::<Bundle>(text)?.data, true),
            "display_data" | "update_display_data" => {
                Content::Display(serde_json::from_str::<Bundle>(text)?.data, false)
            }
            "error" => Content::Error(serde_json::from_str(text)?),
            "execute_reply" => {
                let reply: Outcome = serde_json::from_str(text)?;
                Content::Reply { ok: matches!(reply.status, ReplyStatus::Ok), count: reply.execution_count }
            }
            "hearth_reply" => {
                let outcome: Outcome = serde_json::from_str(text)?;
                Content::Done { ok: matches!(outcome.status, ReplyStatus::Ok) }
            }
            "status" => Content::Ready,
            _ => Content::Other,
        };
        Ok(Self { parent: envelope.parent_header.msg_id.into_owned(), content })
    }
}

/// What a run asks for beside its code: `metadata.hearth` of the request.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Settings<'a> {
    /// From this run on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) default_env: Option<&'a HashMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) env: Option<&'a HashMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cwd: Option<&'a str>,
    /// Base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stdin: Option<String>,
    /// Fresh randomness first.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) reseed: bool,
}

impl Settings<'_> {
    /// `None` when nothing is asked for.
    fn some(&self) -> Option<&Self> {
        let Self { default_env, env, cwd, stdin, reseed } = self;
        let plain = default_env.is_none() && env.is_none() && cwd.is_none() && stdin.is_none() && !reseed;
        (!plain).then_some(self)
    }
}

/// A request, before it has an id.
#[derive(Debug)]
pub(crate) enum Request<'a> {
    Execute(&'a str, Settings<'a>),
    Rehearse(&'a str, Settings<'a>),
    Warm,
    Reseed,
}

#[derive(Serialize)]
struct Outgoing<'a, C> {
    header: OutgoingHead<'a>,
    parent_header: Map<String, Value>,
    metadata: Metadata<'a>,
    content: C,
}

#[derive(Serialize)]
struct OutgoingHead<'a> {
    msg_id: &'a str,
    msg_type: &'a str,
}

#[derive(Serialize, Default)]
struct Metadata<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    hearth: Option<&'a Settings<'a>>,
}

impl Request<'_> {
    /// The message's JSON text.
    pub(crate) fn encode(&self, id: &str) -> Result<Vec<u8>, serde_json::Error> {
        match self {
            Self::Execute(code, settings) => write(id, "execute_request", settings.some(), execute(code)),
            Self::Rehearse(code, settings) => write(id, "hearth_rehearse", settings.some(), execute(code)),
            Self::Warm => write(id, "hearth_warm", None, Map::new()),
            Self::Reseed => write(id, "hearth_reseed", None, Map::new()),
        }
    }
}

fn execute(code: &str) -> ExecuteRequest {
    ExecuteRequest {
        code: code.to_owned(),
        silent: false,
        store_history: true,
        user_expressions: None,
        allow_stdin: false,
        stop_on_error: true,
    }
}

fn write(
    msg_id: &str,
    msg_type: &str,
    hearth: Option<&Settings<'_>>,
    content: impl Serialize,
) -> Result<Vec<u8>, serde_json::Error> {
    let header = OutgoingHead { msg_id, msg_type };
    serde_json::to_vec(&Outgoing {
        header,
        parent_header: Map::new(),
        metadata: Metadata { hearth },
        content,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Message {
        Message::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_stream_names_its_request_and_unknown_members_are_ignored() {
        let message = parse(
            r#"{"header":{"msg_type":"stream","x":1},"parent_header":{"msg_id":"7"},
                "metadata":{},"buffers":[],"content":{"name":"stderr","text":"aé\n","y":2}}"#,
        );
        assert_eq!(message.parent, "7");
        assert!(matches!(message.content, Content::Stream(Source::Stderr, text) if text == "aé\n"));
    }

    #[test]
    fn a_reply_of_any_status_is_read() {
        for (status, expected) in [("ok", true), ("error", false)] {
            let text = format!(
                r#"{{"header":{{"msg_type":"execute_reply"}},"content":{{"status":"{status}","execution_count":3}}}}"#
            );
            assert!(matches!(parse(&text).content, Content::Reply { ok, count: 3 } if ok == expected));
        }
    }

    #[test]
    fn unknown_types_are_skipped_and_junk_is_an_error() {
        assert!(matches!(
            parse(r#"{"header":{"msg_type":"comm_open"},"content":{}}"#).content,
            Content::Other
        ));
        assert!(Message::parse(b"{}").is_err());
        assert!(Message::parse(br#"{"header":{"msg_type":"stream"},"content":{}}"#).is_err());
    }

    #[test]
    fn a_plain_request_carries_no_settings() {
        let bytes = Request::Execute("1", Settings::default()).encode("5").unwrap();
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(value["header"]["msg_id"], "5");
        assert_eq!(value["content"]["code"], "1");
        assert_eq!(value["metadata"], Value::Object(Map::new()));
    }

    proptest! {
        #[test]
        fn junk_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Message::parse(&bytes);
        }
    }
}
