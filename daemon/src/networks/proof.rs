//! Where proofs for join rules come from: the configuration, a variable, a
//! file, a command. What they are is never logged.

use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::config::{Proof, WantedNetwork};

/// Longest proof read from a file or a command, in bytes.
const MAX_PROOF: u64 = 64 << 10;
/// How long a command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);

/// How variables of the environment are read.
pub type Environment = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Why there is no proof; says where it should have come from, never what it
/// is.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProofError {
    #[error("proof {rule}: the environment variable {name} is not set")]
    Unset { rule: String, name: String },
    #[error("proof {rule}: cannot read {path}: {error}")]
    File { rule: String, path: String, error: io::Error },
    #[error("proof {rule}: {path} is longer than 64 KiB")]
    LongFile { rule: String, path: String },
    #[error("proof {rule}: {path} is no UTF-8 text")]
    BinaryFile { rule: String, path: String },
    #[error("proof {rule}: cannot run {program}: {error}")]
    Run { rule: String, program: String, error: io::Error },
    #[error("proof {rule}: {program} {problem}")]
    Command { rule: String, program: String, problem: String },
}

/// All proofs that a network wants, by the name of the rule.
pub(super) async fn gather(
    wanted: &WantedNetwork,
    environment: &Environment,
) -> Result<Map<String, Value>, ProofError> {
    let mut proofs = Map::new();
    for (rule, proof) in &wanted.proofs {
        let value = match proof {
            Proof::Value(value) => value.clone(),
            Proof::Env(name) => match environment(name) {
                Some(text) => text.trim().into(),
                None => return Err(ProofError::Unset { rule: rule.clone(), name: name.clone() }),
            },
            Proof::File(path) => {
                let shown = path.display().to_string();
                let bytes = read(path).await.map_err(|error| ProofError::File {
                    rule: rule.clone(),
                    path: shown.clone(),
                    error,
                })?;
                if bytes.len() as u64 > MAX_PROOF {
                    return Err(ProofError::LongFile { rule: rule.clone(), path: shown });
                }
                match String::from_utf8(bytes) {
                    Ok(text) => text.trim().into(),
                    Err(_) => {
                        return Err(ProofError::BinaryFile { rule: rule.clone(), path: shown });
                    }
                }
            }
            Proof::Command(argv) => run(rule, argv).await?.into(),
        };
        proofs.insert(rule.clone(), value);
    }
    Ok(proofs)
}

async fn read(path: &std::path::Path) -> io::Result<Vec<u8>> {
    let file = tokio::fs::File::open(path).await?;
    let mut bytes = Vec::new();
    file.take(MAX_PROOF + 1).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// What a program prints, run without a shell. It is killed when it takes too
/// long or prints too much.
async fn run(rule: &str, argv: &[String]) -> Result<String, ProofError> {
    let program = argv.first().cloned().unwrap_or_default();
    let failed = |problem: String| ProofError::Command {
        rule: rule.to_owned(),
        program: program.clone(),
        problem,
    };
    let spawned = Command::new(&program)
        .args(argv.iter().skip(1))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let mut child = spawned.map_err(|error| ProofError::Run {
        rule: rule.to_owned(),
        program: program.clone(),
        error,
    })?;
    let mut output = Vec::new();
    let stdout = child.stdout.take();
    let finished = async {
        if let Some(stdout) = stdout {
            stdout.take(MAX_PROOF + 1).read_to_end(&mut output).await?;
        }
        if output.len() as u64 > MAX_PROOF {
            return Ok(None);
        }
        child.wait().await.map(Some)
    };
    let status = match tokio::time::timeout(COMMAND_LIMIT, finished).await {
        Err(_) => return Err(failed("did not end within 10 seconds".to_owned())),
        Ok(Err(error)) => return Err(failed(format!("cannot be heard: {error}"))),
        Ok(Ok(None)) => return Err(failed("printed more than 64 KiB".to_owned())),
        Ok(Ok(Some(status))) => status,
    };
    if !status.success() {
        return Err(failed(format!("failed: {status}")));
    }
    match String::from_utf8(output) {
        Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Ok(_) => Err(failed("printed nothing".to_owned())),
        Err(_) => Err(failed("printed no UTF-8 text".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use pilot_wire::registry::network::NetworkRef;

    use super::*;

    async fn one(proof: Proof) -> Result<Value, String> {
        let proofs = [("token".to_owned(), proof)].into_iter().collect();
        let wanted = WantedNetwork { network: NetworkRef::Id(5), proofs };
        let environment: Environment =
            Arc::new(|name| (name == "LAB_TOKEN").then(|| " from-env\n".to_owned()));
        let proofs = gather(&wanted, &environment).await.map_err(|e| e.to_string())?;
        Ok(proofs["token"].clone())
    }

    fn command(argv: &[&str]) -> Proof {
        Proof::Command(argv.iter().map(|a| (*a).to_owned()).collect())
    }

    #[tokio::test]
    async fn every_source_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lab");
        std::fs::write(&path, "from-file\n").unwrap();
        assert_eq!(one(Proof::Value("given".into())).await.unwrap(), "given");
        assert_eq!(one(Proof::Env("LAB_TOKEN".into())).await.unwrap(), "from-env");
        assert_eq!(one(Proof::File(path)).await.unwrap(), "from-file");
        // No shell looks at it.
        assert_eq!(one(command(&["echo", "$HOME; x"])).await.unwrap(), "$HOME; x");
    }

    #[tokio::test]
    async fn what_is_missing_is_named_and_nothing_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("long");
        std::fs::write(&long, vec![b'x'; 70_000]).unwrap();
        let binary = dir.path().join("binary");
        std::fs::write(&binary, [0xFF, 0xFE]).unwrap();
        let cases = [
            (Proof::Env("NOWHERE".into()), "variable NOWHERE is not set"),
            (Proof::File(dir.path().join("none")), "none"),
            (Proof::File(long.clone()), "longer than 64 KiB"),
            (Proof::File(binary), "no UTF-8"),
            (command(&["/no/such/program"]), "cannot run /no/such/program"),
            (command(&["false"]), "false failed"),
            (command(&["true"]), "printed nothing"),
            (command(&["cat", long.to_str().unwrap()]), "more than 64 KiB"),
        ];
        for (proof, expected) in cases {
            let error = one(proof).await.unwrap_err();
            assert!(error.starts_with("proof token: ") && error.contains(expected), "{error}");
            assert!(!error.contains("xxx"), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_that_hangs_is_ended() {
        let error = one(command(&["sleep", "1000"])).await.unwrap_err();
        assert!(error.contains("did not end within 10 seconds"), "{error}");
    }
}
