//! Questions to a nameserver: one request and one answer per stream.

use std::io;
use std::time::Duration;

use pilot_sdk::{Address, Client};
use pilot_wire::service::nameserver::{Answer, MAX_ANSWER, MAX_REQUEST, PORT, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::failure::Failure;
use crate::peer;

/// How long a nameserver may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the nameserver at `address` answers; an error it gives is a failure.
pub(crate) async fn ask(
    client: &Client,
    address: Address,
    request: &Request,
) -> Result<Answer, Failure> {
    let text = request.to_string();
    if text.len() > MAX_REQUEST {
        return Err(Failure::invalid(format!("the request exceeds {MAX_REQUEST} bytes"))
            .hint("choose a shorter name"));
    }
    let mut stream = peer::dial(client, address, PORT).await?;
    let talk = async {
        stream.write_all(text.as_bytes()).await?;
        stream.flush().await?;
        let mut answer = Vec::new();
        // Our end stays open until the answer is there: a published daemon
        // would close both.
        (&mut stream).take(MAX_ANSWER as u64 + 1).read_to_end(&mut answer).await?;
        if answer.len() > MAX_ANSWER {
            let text = format!("the answer exceeds {MAX_ANSWER} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(answer)
    };
    let answer = match timeout(PATIENCE, talk).await {
        Ok(answer) => answer.map_err(|e| peer::broken(address, "asking", &e))?,
        Err(_) => {
            let message = format!("no answer from {address} within {} s", PATIENCE.as_secs());
            return Err(
                Failure::timeout(message).hint(format!("check peer: pilotctl ping {address}"))
            );
        }
    };
    match Answer::parse(&String::from_utf8_lossy(&answer)) {
        Ok(Answer::Error(text)) if text.ends_with("not found") => Err(Failure::not_found(text)
            .hint("names live 5 minutes; register it again: pilotctl name-register")),
        Ok(Answer::Error(text)) => {
            Err(Failure::connection(format!("the nameserver {address} refused")).reason(text))
        }
        Ok(answer) => Ok(answer),
        Err(e) => Err(unexpected(address).reason(e)),
    }
}

/// An answer to another question.
pub(crate) fn unexpected(address: Address) -> Failure {
    Failure::connection(format!("{address} port {PORT} does not answer as a nameserver does"))
}

/// A word that a request can carry.
pub(crate) fn name(text: &str) -> Result<String, Failure> {
    if text.is_empty() || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Failure::invalid(format!("invalid name {text:?}"))
            .hint("a name is one word without white space"));
    }
    Ok(text.to_owned())
}

/// The failure for anything but `A`, `N` and `S`.
pub(crate) fn unknown_record(text: &str) -> Failure {
    Failure::invalid(format!("unknown record type {text:?} (use A, N or S)"))
}
