//! Checks the configuration of a plugin with the JSON Schema that it declares,
//! before the plugin sees it.

use jsonschema::error::ValidationErrorKind;
use serde_json::{Map, Value};

use crate::settings::{Entry, nearest};

/// Errors that are told at once.
const MAX_ERRORS: usize = 5;

/// The configuration to start with, once it has passed.
///
/// # Errors
/// A text that names file, line and key of what is wrong.
pub(crate) fn check(name: &str, schema: Option<&Value>, entry: &Entry) -> Result<Value, String> {
    let config = match &entry.config {
        Value::Null => Value::Object(Map::new()),
        config => config.clone(),
    };
    let Some(schema) = schema else {
        return match config.as_object() {
            Some(map) if map.is_empty() => Ok(config),
            _ => Err(at(name, entry, &[], "it takes no configuration; remove the key")),
        };
    };
    let validator = jsonschema::validator_for(schema)
        .map_err(|error| format!("the schema of its configuration is wrong: {error}"))?;
    let mut problems = Vec::new();
    for error in validator.iter_errors(&config).take(MAX_ERRORS) {
        let pointer = error.instance_path().as_str().to_owned();
        let path: Vec<String> = pointer
            .split('/')
            .skip(1)
            .map(|part| part.replace("~1", "/").replace("~0", "~"))
            .collect();
        match error.kind() {
            ValidationErrorKind::AdditionalProperties { unexpected } => {
                let known = properties(schema, &path);
                for key in unexpected {
                    let hint = nearest(key, known.iter().map(String::as_str))
                        .map_or_else(String::new, |key| format!(" (did you mean {key}?)"));
                    let path = [path.as_slice(), std::slice::from_ref(key)].concat();
                    problems.push(at(name, entry, &path, &format!("unknown key{hint}")));
                }
            }
            _ => problems.push(at(name, entry, &path, &error.to_string())),
        }
    }
    if problems.is_empty() { Ok(config) } else { Err(problems.join("; ")) }
}

/// Says where a part of the configuration is.
fn at(name: &str, entry: &Entry, path: &[String], problem: &str) -> String {
    let key = [&[name.to_owned(), "config".to_owned()], path].concat().join(".");
    match entry.config_lines.line(path) {
        Some(line) => {
            format!("config file {} line {line}: key {key:?}: {problem}", entry.origin.display())
        }
        None => format!("key {key:?}: {problem}"),
    }
}

/// Names of the keys that the schema knows at `path`, as far as it says them
/// without references.
fn properties(schema: &Value, path: &[String]) -> Vec<String> {
    let mut schema = schema;
    for part in path {
        let next = match part.parse::<usize>() {
            Ok(_) if schema.get("items").is_some() => schema.get("items"),
            _ => schema.get("properties").and_then(|p| p.get(part)),
        };
        match next {
            Some(next) => schema = next,
            None => return Vec::new(),
        }
    }
    let keys = schema.get("properties").and_then(Value::as_object);
    keys.map_or_else(Vec::new, |keys| keys.keys().cloned().collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::settings::Settings;

    fn entry(text: &str) -> Entry {
        Settings::parse(text, Path::new("/etc/pilot.yaml")).unwrap().plugins["web"].clone()
    }

    #[test]
    fn errors_name_file_line_and_key() {
        let schema = json!({
            "type": "object",
            "additionalProperties": false,
            "required": ["folder"],
            "properties": {
                "folder": { "type": "string" },
                "cache": { "type": "object", "additionalProperties": false,
                           "properties": { "seconds": { "type": "integer", "minimum": 1 } } },
            },
        });
        let check = |text: &str| check("web", Some(&schema), &entry(text));
        let fine = check("plugins:\n  web:\n    config:\n      folder: /srv\n").unwrap();
        assert_eq!(fine, json!({ "folder": "/srv" }));
        let error = check(
            "plugins:\n  web:\n    config:\n      folder: /srv\n      cache:\n        \
                           secnds: 3\n",
        )
        .unwrap_err();
        assert!(error.contains("/etc/pilot.yaml line 6"), "{error}");
        assert!(error.contains("web.config.cache.secnds"), "{error}");
        assert!(error.contains("did you mean seconds?"), "{error}");
        let error = check(
            "plugins:\n  web:\n    config:\n      cache: {seconds: 0}\n      \
                           folder: 7\n",
        )
        .unwrap_err();
        assert!(error.contains("line 4") && error.contains("cache.seconds"), "{error}");
        assert!(error.contains("line 5") && error.contains("web.config.folder"), "{error}");
        let error = check("plugins:\n\n  web:\n    enabled: true\n").unwrap_err();
        assert!(error.contains("folder"), "{error}");
    }

    #[test]
    fn without_a_schema_there_is_no_configuration() {
        assert!(check("web", None, &entry("plugins:\n  web:\n")).is_ok());
        assert!(check("web", None, &entry("plugins:\n  web:\n    config: {}\n")).is_ok());
        let error =
            check("web", None, &entry("plugins:\n  web:\n    config:\n      a: 1\n")).unwrap_err();
        assert!(error.contains("takes no configuration") && error.contains("web.config"));
    }

    #[test]
    fn a_wrong_schema_is_the_plugins_fault() {
        let schema = json!({ "type": "no-such-type" });
        let error = check("web", Some(&schema), &entry("plugins:\n  web:\n")).unwrap_err();
        assert!(error.contains("schema of its configuration is wrong"), "{error}");
    }
}
