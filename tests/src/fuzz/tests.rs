//! The fuzzer finds what it should, again and again, and every target stands a
//! short run.

use super::*;

fn boom(input: &[u8]) {
    assert!(input.len() < 2 || input[1] != 0xEE, "planted");
}

fn planted() -> Target {
    let corpus = || vec![vec![0; 6], vec![9; 12]];
    Target { name: "planted", corpus, repair: None, run: boom }
}

#[test]
fn a_planted_fault_is_found_and_can_be_repeated() {
    let target = planted();
    let failed = target.fuzz(3, Limit::Runs(200_000)).expect_err("it finds the fault");
    assert_eq!(failed.input[1], 0xEE);
    assert!(failed.reason.contains("planted"), "{}", failed.reason);
    let again = target.again(3, failed.run).expect_err("it fails again");
    assert_eq!(again.input, failed.input);
    let text = failed.to_string();
    assert!(text.contains(&format!("--target planted --seed 3 --run {}", failed.run)), "{text}");
}

#[test]
fn inputs_differ_between_seeds_and_runs() {
    let target = planted();
    let corpus = (target.corpus)();
    let inputs: std::collections::BTreeSet<_> = (0..200)
        .flat_map(|run| [target.mutated(&corpus, 1, run), target.mutated(&corpus, 2, run)])
        .collect();
    assert!(inputs.len() > 300, "only {} different inputs", inputs.len());
}

#[test]
fn every_target_stands_a_short_run() {
    for target in all() {
        let corpus = (target.corpus)();
        assert!(corpus.len() >= 4, "{} starts from {} messages", target.name, corpus.len());
        let runs = corpus.len() as u64 + 500;
        if let Err(failed) = target.fuzz(1, Limit::Runs(runs)) {
            panic!("{failed}");
        }
    }
}

/// Without this the target could stop at the door unnoticed.
#[test]
fn a_sound_session_gets_through_to_the_application() {
    let sessions = corpus::sessions();
    let reached = core::play(&sessions[0]);
    assert_eq!((reached.incoming, reached.closed), (1, 1), "{reached:?}");
    assert!(reached.read >= 5, "{reached:?}");
    assert_eq!(reached.datagrams, 1, "{reached:?}");
}

/// Without this the target could miss recovery unnoticed.
#[test]
fn sound_acknowledgements_reach_loss_recovery_and_undo() {
    let reached = acks::corpus().iter().map(|input| acks::play(input)).collect::<Vec<_>>();
    assert!(reached.iter().any(|r| r.fast_retx > 0), "{reached:?}");
    assert!(reached.iter().any(|r| r.timeouts > 0), "{reached:?}");
    assert!(reached.iter().any(|r| r.spurious > 0), "{reached:?}");
}
