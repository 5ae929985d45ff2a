//! Commands whose answer comes from the control plane, later and in order.

use std::future::Future;
use std::pin::Pin;

use pilot_wire::SocketAddress;
use pilot_wire::ipc::{Command, ErrorCode, Event, Handshake, MAX_MESSAGE, json};

use super::hub::{Answered, Hub};
use super::plane::{Refused, Request};
use crate::ipc::client::Client;

/// Tags of a node, as published.
const MAX_TAGS: usize = 3;

impl Hub {
    /// Passes a request on; the answer comes back through the hub's channel.
    pub(crate) fn request(&mut self, client: &mut Client, tag: Option<u32>, command: &Command<'_>) {
        let (code, request) = match parse(command) {
            Ok(known) => known,
            Err(text) => return client.refuse_now(tag, ErrorCode::INVALID_ARGUMENT, &text),
        };
        if !client.replies.has_room() {
            let text = "too many requests of this client wait for an answer";
            return client.refuse_now(tag, ErrorCode::LIMIT, text);
        }
        let tag = Some(client.replies.open(code, tag));
        let answer: Pin<Box<dyn Future<Output = _>>> = self.plane.request(request);
        let (client, answers) = (client.id, self.answers.clone());
        tokio::task::spawn_local(async move {
            let result = answer.await;
            // An error means that the loop has ended, and the client with it.
            let _ = answers.send(Answered { client, tag, code, result }).await;
        });
    }

    /// Sends a datagram to all of a network. The client hears of it only when
    /// it fails.
    pub(crate) fn broadcast(&mut self, client: &mut Client, to: SocketAddress, data: &[u8]) {
        let answer = match self.plane.broadcast(to, data) {
            Ok(answer) => answer,
            Err(refused) => {
                let text = format!("sendto: {refused}");
                return client.refuse_now(None, refused.code, &text);
            }
        };
        let (client, answers) = (client.id, self.answers.clone());
        tokio::task::spawn_local(async move {
            if let Err(Refused { code, text }) = answer.await {
                let result = Err(Refused { code, text: format!("sendto: {text}") });
                // An error means that the loop has ended, and the client with it.
                let _ = answers.send(Answered { client, tag: None, code: 0, result }).await;
            }
        });
    }
}

impl Hub {
    /// The same for a plugin, which hears of nothing.
    pub(crate) fn broadcast_of_plugin(&mut self, to: SocketAddress, data: &[u8]) {
        match self.plane.broadcast(to, data) {
            Ok(answer) => {
                tokio::task::spawn_local(async move {
                    if let Err(error) = answer.await {
                        tracing::debug!(%to, %error, "a plugin's broadcast was not sent");
                    }
                });
            }
            Err(error) => tracing::debug!(%to, %error, "a plugin's broadcast was not sent"),
        }
    }
}

/// Tells a client what the control plane answered.
pub(crate) fn deliver(client: &mut Client, answered: &Answered) {
    let Some(tag) = answered.tag else {
        if let Err(refused) = &answered.result {
            client.refuse_now(None, refused.code, &refused.text);
        }
        return;
    };
    match &answered.result {
        Ok(value) => {
            let text = value.to_string();
            if text.len() >= MAX_MESSAGE - 16 {
                let text = "the answer does not fit a message";
                return client.refuse(tag, ErrorCode::LIMIT, text);
            }
            let event = Event::Json { code: answered.code, body: text.as_bytes() };
            client.answer(tag, &event);
        }
        Err(refused) => client.refuse(tag, refused.code, &refused.text),
    }
}

fn parse(command: &Command<'_>) -> Result<(u8, Request), String> {
    Ok(match *command {
        Command::ResolveHostname(name) => {
            (json::RESOLVE_HOSTNAME, Request::ResolveHostname(name.to_owned()))
        }
        Command::SetHostname(name) => (json::SET_HOSTNAME, Request::SetHostname(name.to_owned())),
        Command::SetVisibility { public } => (json::SET_VISIBILITY, Request::SetVisibility(public)),
        Command::Deregister => (json::DEREGISTER, Request::Deregister),
        Command::SetTags(text) => (json::SET_TAGS, Request::SetTags(tags(text)?)),
        Command::SetTaskExec { enabled } => (json::SET_TASK_EXEC, Request::SetTaskExec(enabled)),
        Command::Handshake(handshake) => (json::HANDSHAKE, trust(handshake)),
        Command::SetWebhook(url) => (json::SET_WEBHOOK, Request::SetWebhook(url.to_owned())),
        Command::Plugins(name) => (json::PLUGINS, Request::Plugins(name.to_owned())),
        Command::Reload => (json::RELOAD, Request::Reload),
        Command::Registry(body) => (json::REGISTRY, Request::Registry(body.to_vec())),
        _ => return Err("this command is not a request".to_owned()),
    })
}

fn tags(text: &[u8]) -> Result<Vec<String>, String> {
    // `null` is how the published daemon reads no tags at all.
    let tags: Option<Vec<String>> =
        serde_json::from_slice(text).map_err(|e| format!("set_tags: invalid JSON: {e}"))?;
    let tags = tags.unwrap_or_default();
    if tags.len() > MAX_TAGS {
        return Err(format!("set_tags: maximum {MAX_TAGS} tags allowed"));
    }
    Ok(tags)
}

fn trust(handshake: Handshake<'_>) -> Request {
    match handshake {
        Handshake::Request { node, justification } => {
            Request::TrustRequest { node, justification: justification.to_owned() }
        }
        Handshake::Approve { node } => Request::TrustApprove(node),
        Handshake::Reject { node, reason } => {
            Request::TrustReject { node, reason: reason.to_owned() }
        }
        Handshake::Pending => Request::TrustPending,
        Handshake::Trusted => Request::TrustList,
        Handshake::Revoke { node } => Request::TrustRevoke(node),
    }
}
