//! Join tokens are made and end. Whether a secret fits one is not known here.

use pilot_wire::registry::TokenMade;

use super::{Outcome, check_member_tags, done, invalid, is_over};
use crate::state::rows::RowKey;
use crate::state::{Actor, MAX_TOKENS, Refusal, State, Token};

/// Longest name of a token, in bytes.
const MAX_ID: usize = 64;

impl State {
    /// The secret in the answer is empty: it is known to who had the token made.
    pub(super) fn create_token(
        &mut self,
        by: &Actor,
        network: u16,
        token: Token,
        at: u64,
    ) -> Outcome {
        self.managed(by, network)?;
        check_member_tags(&token.tags)?;
        if token.id.is_empty() || token.id.len() > MAX_ID {
            return Err(invalid("id", format!("is not 1 to {MAX_ID} bytes")));
        }
        if token.uses_left == Some(0) {
            return Err(invalid("uses", "lets nobody in; give 1 or more, or leave it out"));
        }
        if is_over(token.expires, at) {
            return Err(invalid("expires", "is over already; give a later time"));
        }
        let tokens = &self.network(network)?.tokens;
        if tokens.contains_key(&token.id) {
            return Err(invalid("id", format!("the network has a token {:?}", token.id)));
        }
        if tokens.len() >= MAX_TOKENS {
            return Err(Refusal::Full("join tokens of one network"));
        }
        let view = token.view(network);
        self.networks.put_token(network, token);
        self.dirty.mark(|| RowKey::Network(network));
        Ok(TokenMade { token: view, secret: String::new() }.into())
    }

    pub(super) fn revoke_token(&mut self, by: &Actor, network: u16, id: &str) -> Outcome {
        self.managed(by, network)?;
        self.networks.remove_token(network, id).ok_or(Refusal::TokenGone)?;
        self.dirty.mark(|| RowKey::Network(network));
        Ok(done(network))
    }
}
