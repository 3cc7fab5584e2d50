//! Two real agents, a real unit and a real program: killed, hung, moved, cut off.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test fails by a panic"
)]

mod support;

use rustix::process::Signal;
use support::agents::{A, Agents, B, Line, wait_until};
use support::leaders::{Found, Log};

#[test]
fn s05_killed_program_goes_on_elsewhere_with_all_that_was_acknowledged() {
    let mut agents = Agents::new(1 << 20);
    agents.both_at_work();
    let before = agents.wait_for(A, "primary");
    agents.signal(before.pid.unwrap(), Signal::KILL);
    let took = agents.wait_for_leader_after(before.epoch);
    let status = agents.wait_for(B, "primary");
    eprintln!(
        "takeover in {took:?}, fence {:?} us, recovery {:?} us",
        status.fence_us, status.recovery_us
    );
    assert_eq!(status.takeovers, 1);
    agents.wait_for(A, "standby");
    agents.check();
    // And back again.
    agents.signal(status.pid.unwrap(), Signal::KILL);
    agents.wait_for_leader_after(status.epoch);
    agents.wait_for(A, "primary");
    agents.check();
}

#[test]
fn s05_a_program_that_loads_while_another_leads_and_fails_is_refused_and_nothing_is_lost() {
    let mut agents = Agents::with_relays(4096);
    std::fs::write(agents.path("load"), "8000").unwrap();
    agents.start(A, "primary", &[]);
    wait_until("the program loads", || !agents.path("load").exists());
    agents.start(B, "standby", &[]);
    wait_until("the standby is there", || agents.status(B).is_some());
    // So that nobody but the unit can tell the first one.
    agents.cut(true);
    let promoted = agents.ask(B, &["promote", "--force"]);
    assert!(promoted.status.success(), "{promoted:?}");
    let led = agents.wait_for(B, "primary");
    agents.wait_for_leader_after(0);
    agents.signal(led.pid.unwrap(), Signal::KILL);
    wait_until("it is refused", || {
        agents.log(A).contains("counter: fenced: region log")
    });
    agents.cut(false);
    agents.wait_for_leader_after(led.epoch);
    agents.check();
}

#[test]
fn s05_a_fenced_program_that_cleans_up_slowly_keeps_nothing_from_the_next_one() {
    let mut agents = Agents::new(4096);
    agents.program.push_str("stop_timeout_ms = 1000");
    agents.both_at_work();
    let first = agents.wait_for(A, "primary").pid.unwrap();
    std::fs::write(agents.path("linger"), "").unwrap();
    let promoted = agents.ask(B, &["promote", "--force"]);
    assert!(promoted.status.success(), "{promoted:?}");
    agents.wait_for(A, "standby");
    let lives = |pid: u32| std::path::Path::new(&format!("/proc/{pid}")).exists();
    assert!(lives(first), "it cleans up");
    let second = agents.wait_for(B, "primary");
    agents.wait_for_leader_after(second.epoch - 1);
    wait_until("the standby knows that it leads", || {
        let status = agents.status(A);
        status.is_some_and(|status| status.epoch == second.epoch && status.since_beat_ms.is_some())
    });
    agents.signal(second.pid.unwrap(), Signal::KILL);
    agents.wait_for_leader_after(second.epoch);
    agents.wait_for(A, "primary");
    assert!(!lives(first), "it was killed before");
    assert!(agents.log(A).contains("the earlier program is still there"));
    agents.check();
    // One that lingers ends with its agent.
    let third = agents.pid(A);
    let promoted = agents.ask(B, &["promote", "--force"]);
    assert!(promoted.status.success(), "{promoted:?}");
    agents.wait_for(A, "standby");
    assert!(lives(third), "it cleans up");
    assert!(agents.ask(A, &["stop"]).status.success());
    assert_eq!(agents.exit_code(A), Some(0));
    assert!(!lives(third), "its agent has left it behind");
}

#[test]
fn s05_a_kill_is_known_before_the_programs_memory_is_free() {
    let mut agents = Agents::new(4096);
    std::fs::write(agents.path("memory"), "1024").unwrap();
    agents.both_at_work();
    let before = agents.wait_for(A, "primary");
    std::fs::remove_file(agents.path("memory")).unwrap();
    agents.signal(before.pid.unwrap(), Signal::KILL);
    agents.wait_for_leader_after(before.epoch);
    wait_until("its end is seen too", || {
        agents.log(A).contains("the program has ended")
    });
    let log = agents.log(A);
    let place = |what: &str| log.find(what).unwrap_or_else(|| panic!("{what}: {log}"));
    assert!(
        place("the program is dying") < place("the program has ended"),
        "{log}"
    );
    agents.wait_for(A, "standby");
    agents.check();
}

#[test]
fn p14_ten_kills_at_random_moments_lose_nothing() {
    let mut agents = Agents::new(64 << 10);
    let onlooker = agents.look_on();
    agents.both_at_work();
    let mut state = u64::from(std::process::id()) | 1;
    for kill in 0..10 {
        let leader = if kill % 2 == 0 { A } else { B };
        let status = agents.wait_for(leader, "primary");
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let moment = std::time::Duration::from_micros((state >> 33) % 150_000);
        std::thread::sleep(moment);
        agents.signal(status.pid.unwrap(), Signal::KILL);
        let took = agents.wait_for_leader_after(status.epoch);
        eprintln!("kill {kill} after {moment:?}: goes on after {took:?}");
    }
    agents.check();
    let found = agents.check_leaders(&onlooker.finish());
    let apart = std::time::Duration::from_nanos(found.apart_ns.unwrap());
    eprintln!(
        "{} led in turn, {apart:?} apart or more; {} commits, {} records in the log",
        found.led, found.commits, found.records
    );
    assert!(found.led >= 11 && found.records > 0, "{found:?}");
}

#[test]
fn p14_a_second_leader_fails_the_check_of_real_kills() {
    let mut agents = Agents::new(4096);
    let onlooker = agents.look_on();
    agents.both_at_work();
    let before = agents.wait_for(A, "primary");
    agents.signal(before.pid.unwrap(), Signal::KILL);
    agents.wait_for_leader_after(before.epoch);
    agents.wait_for(B, "primary");
    let log = onlooker.finish();
    agents.check_leaders(&log);
    // What the dead one would have written down, had it been told of one more record behind the first of its successor.
    let lines = agents.lines();
    let newest = lines.iter().rev().find_map(|line| match line {
        Line::Acknowledged { epoch, commit, .. } if *epoch > before.epoch => Some(*commit),
        _ => None,
    });
    let newest = newest.unwrap();
    let (from, to) = (newest.to, newest.to + 64);
    let (begun, told) = (newest.told_ns, newest.told_ns + 1000);
    let epoch = before.epoch;
    let line = format!("record {epoch} {epoch} 1 {from} {to} {begun} {told}\n");
    let planted = |agents: &Agents, log: &Log| {
        let checked = std::panic::AssertUnwindSafe(|| agents.check_leaders(log));
        let said = std::panic::catch_unwind(checked).unwrap_err();
        said.downcast_ref::<String>().unwrap().clone()
    };
    let mut later = log.clone();
    later.saw(Found {
        from,
        to,
        epoch: before.epoch,
    });
    let said = planted(&agents, &later);
    assert!(said.contains(&format!("{from}..{to}")), "{said}");
    agents.append_line(&line);
    let said = planted(&agents, &log);
    assert!(said.contains("two leaders"), "{said}");
    for pid in [before.pid.unwrap(), agents.pid(B)] {
        assert!(said.contains(&format!("process {pid} ")), "{said}");
    }
}

#[test]
fn s05_a_hung_program_is_found_by_its_beat_and_killed() {
    let mut agents = Agents::new(4096);
    agents.both_at_work();
    let before = agents.wait_for(A, "primary");
    agents.signal(before.pid.unwrap(), Signal::STOP);
    agents.wait_for_leader_after(before.epoch);
    agents.wait_for(B, "primary");
    agents.wait_for(A, "standby");
    // Its own agent is the first to see it, but that is a matter of milliseconds.
    let seen = agents.log(A).contains("the program hangs");
    assert!(seen || agents.log(B).contains("its beat has stopped"));
    agents.check();
}

#[test]
fn b03_a_zombie_that_wakes_up_is_fenced_and_its_agent_stands_by() {
    let mut agents = Agents::new(4096);
    agents.watch.push_str("\nkill_hung = false");
    let onlooker = agents.look_on();
    agents.both_at_work();
    let before = agents.wait_for(A, "primary");
    let pid = before.pid.unwrap();
    agents.signal(pid, Signal::STOP);
    agents.wait_for_leader_after(before.epoch);
    agents.wait_for(B, "primary");
    agents.signal(pid, Signal::CONT);
    wait_until("the zombie is fenced", || {
        let fenced = Line::Fenced {
            epoch: before.epoch,
        };
        agents.lines().contains(&fenced)
            || agents.status(A).is_some_and(|status| status.pid.is_none())
    });
    agents.wait_for(A, "standby");
    agents.wait_for(B, "primary");
    agents.check();
    let found = agents.check_leaders(&onlooker.finish());
    assert!(found.led == 2 && found.records > 0, "{found:?}");
}

#[test]
fn s05_a_program_that_hangs_without_being_stopped_is_found_too() {
    let mut agents = Agents::new(4096);
    agents.both_at_work();
    let before = agents.wait_for(A, "primary");
    std::fs::write(agents.path("hang"), "").unwrap();
    wait_until("it is said", || agents.log(A).contains("the program hangs"));
    std::fs::remove_file(agents.path("hang")).unwrap();
    agents.wait_for_leader_after(before.epoch);
    agents.wait_for(B, "primary");
    agents.check();
}

#[test]
fn s05_the_death_of_an_agent_alone_moves_nothing_and_another_adopts_the_program() {
    let mut agents = Agents::new(4096);
    agents.both_at_work();
    let before = agents.wait_for(A, "primary");
    let pid = before.pid.unwrap();
    agents.kill_agent(A);
    let acknowledged = agents.acknowledged();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(
        agents.acknowledged() > acknowledged,
        "the program has stopped"
    );
    assert_eq!(agents.status(B).unwrap().takeovers, 0, "{}", agents.log(B));
    agents.start(A, "primary", &["--adopt", &pid.to_string()]);
    wait_until("the program has found its new agent", || {
        agents
            .status(A)
            .is_some_and(|status| status.epoch == before.epoch && status.snapshot.is_some())
    });
    // It is watched as before.
    agents.signal(pid, Signal::KILL);
    agents.wait_for_leader_after(before.epoch);
    agents.wait_for(B, "primary");
    agents.check();
}

#[test]
fn s05_the_death_of_a_host_is_confirmed_by_silence() {
    let mut agents = Agents::new(4096);
    agents.both_at_work();
    let before = agents.wait_for(A, "primary");
    agents.kill_agent(A);
    agents.signal(before.pid.unwrap(), Signal::KILL);
    let took = agents.wait_for_leader_after(before.epoch);
    eprintln!("goes on after {took:?}, of which a silence is 500 ms");
    agents.check();
    // It comes back as if nothing had been, and as primary: somebody else is.
    agents.start(A, "primary", &[]);
    agents.wait_for(A, "standby");
    assert!(
        agents.log(A).contains("somebody else leads"),
        "{}",
        agents.log(A)
    );
    agents.check();
}

#[test]
fn s05_a_cut_between_the_agents_moves_nothing() {
    let mut agents = Agents::with_relays(4096);
    // A second of silence: here a commit on a busy disk must not be taken for one.
    agents.watch = "interval_ms = 50\nintervals = 20\ngrace_ms = 2000".into();
    agents.both_at_work();
    let before = agents.wait_for(A, "primary");
    agents.cut(true);
    wait_until("the peer is not heard", || {
        agents.status(B).unwrap().since_peer_ms.unwrap() > 3000
    });
    assert_eq!(agents.status(B).unwrap().takeovers, 0);
    assert_eq!(agents.status(A).unwrap().epoch, before.epoch);
    // With the cut still there the beat decides.
    agents.signal(before.pid.unwrap(), Signal::KILL);
    agents.wait_for_leader_after(before.epoch);
    agents.check();
    agents.cut(false);
    wait_until("one leads, and the other stands by", || {
        let roles = [A, B].map(|which| agents.status(which).unwrap().role.to_string());
        roles == ["primary", "standby"] || roles == ["standby", "primary"]
    });
    agents.check();
}

#[test]
fn s05_of_two_agents_that_begin_as_primary_one_leads() {
    let mut agents = Agents::new(4096);
    agents.start(A, "primary", &[]);
    agents.start(B, "primary", &[]);
    wait_until("one leads, and the other stands by", || {
        let roles = [A, B].map(|which| agents.status(which).map(|status| status.role.to_string()));
        roles == [Some("primary".into()), Some("standby".into())]
            || roles == [Some("standby".into()), Some("primary".into())]
    });
    let loser = if agents.status(A).unwrap().role.to_string() == "standby" {
        A
    } else {
        B
    };
    let log = agents.log(loser);
    assert!(
        log.contains("leads: standing by")
            || log.contains("fenced: somebody else leads")
            || log.contains("the peer has taken over after us: standing by"),
        "{log}"
    );
    std::thread::sleep(std::time::Duration::from_secs(1));
    agents.check();
}

#[test]
fn s10_a_program_moves_and_comes_back_without_a_failure() {
    let mut agents = Agents::new(4096);
    agents.both_at_work();
    for (leader, other) in [(A, B), (B, A)] {
        agents.wait_for(leader, "primary");
        let output = agents.ask(other, &["promote"]);
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("primary in epoch"), "{said}");
        agents.wait_for(leader, "standby");
        assert!(
            !agents.log(leader).contains("ERROR"),
            "{}",
            agents.log(leader)
        );
    }
    agents.check();
    let again = agents.ask(A, &["promote"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("leads already"));
}

#[test]
fn s10_a_rehearsal_runs_from_a_copy_and_leaves_the_primary_alone() {
    let mut agents = Agents::new(256 << 10);
    agents.both_at_work();
    let before = agents.wait_for(A, "primary");
    let known = agents.acknowledged();
    let output = agents.ask(B, &["rehearse"]);
    assert!(output.status.success(), "{output:?}");
    let rehearsed = std::fs::read_to_string(agents.path("rehearsed")).unwrap();
    assert!(
        rehearsed.parse::<u64>().unwrap() >= known,
        "{rehearsed} of {known}"
    );
    let after = agents.wait_for(A, "primary");
    assert_eq!((after.epoch, after.pid), (before.epoch, before.pid));
    // A second instance that would fail is found out before it is needed.
    std::fs::write(agents.path("broken"), "").unwrap();
    let output = agents.ask(B, &["rehearse"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    agents.check();
}

#[test]
fn s05_a_second_instance_that_does_not_start_is_tried_again_and_then_given_up() {
    let mut agents = Agents::new(4096);
    agents
        .program
        .push_str("start_attempts = 3\nstart_pause_ms = 50");
    agents.both_at_work();
    let before = agents.wait_for(A, "primary");
    std::fs::write(agents.path("broken"), "").unwrap();
    agents.signal(before.pid.unwrap(), Signal::KILL);
    agents.wait_for(B, "given up");
    let log = agents.log(B);
    assert!(
        log.contains("attempt 1 of 3") && log.contains("GIVEN UP"),
        "{log}"
    );
    // The other agent tries as well, and gives up as well.
    agents.wait_for(A, "given up");
    std::fs::remove_file(agents.path("broken")).unwrap();
    let output = agents.ask(B, &["promote"]);
    assert!(output.status.success(), "{output:?}");
    agents.wait_for_leader_after(before.epoch);
    agents.check();
}

#[test]
fn s05_a_cold_standby_reads_everything_at_the_takeover() {
    let mut agents = Agents::new(1 << 20);
    agents.more.push_str("[follow]\nwarm = false\n");
    agents.start(A, "primary", &[]);
    let before = agents.wait_for(A, "primary");
    agents.start(B, "standby", &[]);
    wait_until("a snapshot is made", || {
        agents.status(A).unwrap().snapshot.is_some()
    });
    wait_until("the standby hears its peer", || {
        agents.status(B).is_some_and(|status| status.peer.is_some())
    });
    agents.signal(before.pid.unwrap(), Signal::KILL);
    agents.wait_for_leader_after(before.epoch);
    agents.check();
}

#[test]
fn s04_an_agent_causes_snapshots_and_says_what_they_cost() {
    // Room for 512 records.
    let mut agents = Agents::with_log(1 << 20, 64 << 10);
    agents.both_at_work();
    wait_until("some snapshots are made", || {
        let last = agents.status(A).unwrap().snapshot;
        last.is_some_and(|last| last.id >= 3)
    });
    let status = agents.status(A).unwrap();
    let last = status.snapshot.unwrap();
    assert!(
        last.set > 0 && last.bytes == 1 << 20 && last.pause_us > 0 && last.durable,
        "{last:?}"
    );
    let text = agents.ask(A, &["status"]);
    assert_eq!(text.status.code(), Some(0));
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    for word in ["role", "epoch", "lag", "pause", "heartbeat"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert_eq!(agents.ask(B, &["status"]).status.code(), Some(3));
    // Behind a set the log is cleared, so that it takes more than it has room for.
    let before = agents.acknowledged();
    wait_until("more was appended than the log holds", || {
        agents.acknowledged() > before + 520
    });
    agents.check();
}

#[test]
fn s04_a_program_is_ended_with_its_agent_and_nobody_takes_over() {
    let mut agents = Agents::new(4096);
    agents.both_at_work();
    let pid = agents.pid(A);
    assert!(agents.ask(A, &["stop"]).status.success());
    assert_eq!(agents.exit_code(A), Some(0));
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    std::thread::sleep(std::time::Duration::from_secs(1));
    let status = agents.status(B).unwrap();
    assert_eq!(
        (status.takeovers, status.role.to_string().as_str()),
        (0, "standby")
    );
    // Demoted, it leaves the lead to whoever is told.
    assert!(agents.ask(B, &["promote"]).status.success());
    assert!(agents.ask(B, &["demote"]).status.success());
    agents.wait_for(B, "demoted");
    agents.check();
}
