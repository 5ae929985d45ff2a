//! The journal as the manager of plugins sees it.

use serde_json::Value;

use super::{Attached, Journal, SinkSettings};
use crate::manager::{Deliver, SinkHandle, Sinks};

impl Sinks for Journal {
    fn attach(
        &self,
        sink: &str,
        settings: &Value,
        deliver: Deliver,
    ) -> Result<Box<dyn SinkHandle>, String> {
        let settings = parse(settings)?;
        let attached = Self::attach(self, sink, settings, deliver).map_err(|e| e.to_string())?;
        Ok(Box::new(attached))
    }
}

impl SinkHandle for Attached {
    fn replace(&mut self, settings: &Value, deliver: Deliver) -> Result<(), String> {
        Self::replace(self, parse(settings)?, deliver).map_err(|e| e.to_string())
    }

    fn detach(self: Box<Self>) {
        Self::detach(*self);
    }

    fn status(&self) -> Value {
        serde_json::to_value(Self::status(self)).unwrap_or_default()
    }
}

fn parse(settings: &Value) -> Result<SinkSettings, String> {
    match settings {
        Value::Null => Ok(SinkSettings::default()),
        given => serde_json::from_value(given.clone()).map_err(|e| e.to_string()),
    }
}
