//! The seam between requests to join a network and whoever judges them. What
//! is not a verdict is a refusal.

use pilot_host::BoxFuture;
use pilot_plugin::{JoinRequest, Verdict};

/// Judges who may join.
pub trait JoinRules: Send + Sync {
    /// Asks the rule that the request names. Whatever keeps it from a verdict
    /// (no such rule, a failure, a panic, a time limit) denies, with a reason
    /// that names the rule.
    fn validate(&self, request: JoinRequest) -> BoxFuture<Verdict>;

    /// Names of the rules that can be asked now.
    fn names(&self) -> Vec<String>;

    /// Answers when those that are there from the start can be asked.
    fn ready(&self) -> BoxFuture<()> {
        Box::pin(std::future::ready(()))
    }
}

/// No rule at all: everything is denied.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoRules;

impl JoinRules for NoRules {
    fn validate(&self, request: JoinRequest) -> BoxFuture<Verdict> {
        let reason = format!(
            "no plugin provides the join rule {:?}: this registry hosts no plugins; its log says \
             why; give it a folder with data",
            request.rule
        );
        Box::pin(std::future::ready(Verdict::deny(reason)))
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}
