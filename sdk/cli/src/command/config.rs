//! `config`: shows or changes the configuration.

use serde_json::{Value, json};

use crate::args::Args;
use crate::cx::Cx;
use crate::failure::Failure;
use crate::output::Answer;
use crate::spec::{Flag, Spec};

pub(crate) const SPEC: Spec = Spec {
    name: "config",
    usage: "config [--set key=value]",
    about: "Show or change the configuration",
    returns: "the configuration, config_path, pid_file, log_file; with --set: key, value",
    flags: &[Flag::value("set", "key=value", "change one key; an empty value removes it")],
    positionals: (0, 0),
    run: |cx, args| Box::pin(run(cx, args)),
};

async fn run(cx: &Cx, args: &Args) -> Result<Answer, Failure> {
    let mut config = cx.home.config()?;
    if let Some(setting) = args.value("set") {
        let pair = setting.split_once('=').filter(|(key, _)| !key.is_empty());
        let (key, value) =
            pair.ok_or_else(|| Failure::invalid("usage: pilotctl config --set key=value"))?;
        if value.is_empty() {
            config.remove(key);
        } else {
            config.insert(key.to_owned(), json!(value));
        }
        cx.home.save_config(&config)?;
        return Ok(Answer::new(json!({"key": key, "value": value}), format!("{key} = {value}")));
    }
    config.insert("config_path".to_owned(), json!(cx.home.config_path()));
    config.insert("pid_file".to_owned(), json!(cx.home.pid_path()));
    config.insert("log_file".to_owned(), json!(cx.home.log_path()));
    let fields: Vec<(&str, String)> = config
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str().map_or_else(|| v.to_string(), str::to_owned)))
        .collect();
    let text = cx.out.fields(&fields);
    Ok(Answer::new(Value::Object(config), text))
}
