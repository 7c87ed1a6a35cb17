//! Either of the agent's two processes ends, and guests are served.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use metadata_tests::{
    agent::Agent,
    check::{META_DATA, is_identity_of, own_identity},
    cloud::Cloud,
    guest::Guest,
    http::Error,
    process::family,
    wait::until,
};
use nix::{
    sys::{
        ptrace,
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};

const SOON: Duration = Duration::from_secs(60);
const KILLS: usize = 5;

fn end(process: u32, signal: Signal) -> Result<()> {
    Ok(kill(Pid::from_raw(process.cast_signed()), signal)?)
}

/// Waits for a guest-facing process that is not that one.
fn another(agent: &Agent, than: u32) -> Result<u32> {
    until("there is another guest-facing process", SOON, || {
        let process = agent.guest_process()?;
        ensure!(process != than);
        Ok(process)
    })
}

fn is_gone(process: u32) -> Result<()> {
    until("the process has ended", SOON, || {
        ensure!(!Path::new(&format!("/proc/{process}")).exists());
        Ok(())
    })
}

/// Asks over new connections until told to stop; gives the number of answers, and of connections that were reset.
fn ask(guest: &Guest, stop: &AtomicBool) -> Result<(usize, usize)> {
    let (mut answers, mut broken) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        match guest.get(META_DATA) {
            Ok(response) => {
                is_identity_of(&guest.port, &response)?;
                answers += 1;
            }
            Err(Error::Reset | Error::Closed) => broken += 1,
            Err(error) => return Err(error.into()),
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok((answers, broken))
}

/// Lets the guest ask while something is done.
fn while_asking(guest: &Guest, work: impl FnOnce() -> Result<()>) -> Result<(usize, usize)> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| ask(guest, &stop));
        let worked = work();
        stop.store(true, Ordering::Relaxed);
        let asked = asking.join().ok().context("the guest panicked")??;
        worked.map(|()| asked)
    })
}

/// The listening sockets stay open: no SYN is refused or has to be repeated, and only what was under way breaks.
#[test]
fn a_killed_guest_facing_process_is_replaced_at_once() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    let [guest, other] = cloud.overlapping_guests()?;
    let mut kept = guest.connect()?;
    is_identity_of(&guest.port, &kept.request("GET", META_DATA, &[], b"")?)?;
    let before = guest.netns.repeated_syns()?;
    let mut slowest = Duration::ZERO;
    let (answers, broken) = while_asking(&guest, || {
        for _ in 0..KILLS {
            let process = cloud.agent.guest_process()?;
            end(process, Signal::SIGKILL)?;
            let began = Instant::now();
            own_identity(&other)?;
            slowest = slowest.max(began.elapsed());
            ensure!(another(&cloud.agent, process)? != process);
            // One that has lived for a while is replaced without delay.
            thread::sleep(Duration::from_millis(1500));
        }
        Ok(())
    })?;
    println!("{answers} answers, {broken} broken, the first answer after a kill within {slowest:?}");
    ensure!(answers > KILLS && broken <= KILLS, "{answers} answers and {broken} broken connections");
    assert_eq!(guest.netns.repeated_syns()? - before, 0);
    // It was reset, and does not wait for its time to be over.
    ensure!(kept.request("GET", META_DATA, &[], b"").is_err());
    assert_eq!(cloud.agent.metric("metadata_guest_process_restarts_total")?, KILLS as f64);
    let log = cloud.agent.log()?;
    ensure!(log.contains("it was killed (SIGKILL)"), "{log}");
    Ok(())
}

/// Known ports are served by the other process meanwhile, which the next agent takes over from.
#[test]
fn guests_do_not_notice_that_the_agent_is_killed() -> Result<()> {
    let mut cloud = Cloud::with_inventory()?;
    let [guest, other] = cloud.overlapping_guests()?;
    own_identity(&guest)?;
    let mut kept = other.connect()?;
    is_identity_of(&other.port, &kept.request("GET", META_DATA, &[], b"")?)?;
    let before = guest.netns.repeated_syns()?;
    let mut orphan = 0;
    let agent = &mut cloud.agent;
    let (answers, broken) = while_asking(&guest, || {
        orphan = agent.guest_process()?;
        agent.kill()?;
        // As a service manager waits.
        thread::sleep(Duration::from_millis(300));
        ensure!(Path::new(&format!("/proc/{orphan}")).exists(), "the guest-facing process ended as well");
        // Over the connection to Nova that it has, which nobody else of that instance takes meanwhile.
        is_identity_of(&other.port, &kept.request("GET", META_DATA, &[], b"")?)?;
        agent.resume()?;
        // This one needs a new connection to Nova, which only an agent can make.
        own_identity(&other)?;
        agent.wait_ready()?;
        is_gone(orphan)
    })?;
    println!("{answers} answers");
    ensure!(answers > 5 && broken == 0, "{answers} answers and {broken} broken connections");
    assert_eq!(guest.netns.repeated_syns()? - before, 0);
    let log = cloud.agent.log()?;
    for words in ["the agent is gone", "a guest-facing process of a former agent still serves"] {
        ensure!(log.contains(words), "no {words:?} in {log}");
    }
    own_identity(&guest)?;
    own_identity(&other)
}

/// `cleanup` ends what an agent that was killed has left.
#[test]
fn a_clean_up_ends_an_orphan() -> Result<()> {
    let mut cloud = Cloud::with_inventory()?;
    let [guest, _] = cloud.overlapping_guests()?;
    own_identity(&guest)?;
    let orphan = cloud.agent.guest_process()?;
    cloud.agent.kill()?;
    cloud.agent.clean_up()?;
    is_gone(orphan)?;
    ensure!(!cloud.agent.run_dir().exists());
    fs::create_dir(cloud.agent.run_dir())?;
    Ok(())
}

/// A process that ends again and again is a trouble of the node, with its reason, and is started less and less often.
#[test]
fn a_crash_loop_is_told_and_ends() -> Result<()> {
    let mut cloud = Cloud::with_inventory()?;
    let [guest, _] = cloud.overlapping_guests()?;
    own_identity(&guest)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let processes = cloud.agent.id().and_then(family).unwrap_or_default();
                for process in processes.into_iter().skip(1) {
                    // It may have ended.
                    let _ = end(process, Signal::SIGSEGV);
                }
                thread::sleep(Duration::from_millis(5));
            }
        });
        let told = cloud.agent.wait_pending("the guest-facing process ends again and again");
        stop.store(true, Ordering::Relaxed);
        let told = told?;
        ensure!(told.contains("SIGSEGV"), "{told}");
        Ok(())
    })?;
    cloud.agent.wait_ready()?;
    own_identity(&guest)
}

/// One that does not do as it is told is not waited for.
#[test]
fn a_process_that_is_stuck_is_replaced() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    let [guest, _] = cloud.overlapping_guests()?;
    own_identity(&guest)?;
    let process = cloud.agent.guest_process()?;
    end(process, Signal::SIGSTOP)?;
    another(&cloud.agent, process)?;
    is_gone(process)?;
    own_identity(&guest)?;
    cloud.agent.wait_logged(&["it was stuck, and was killed"]).map(drop)
}

/// The others would serve on, and every other connection would wait for it.
#[test]
fn a_worker_that_is_stuck_is_replaced_with_its_process() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    let [guest, _] = cloud.overlapping_guests()?;
    own_identity(&guest)?;
    let process = cloud.agent.guest_process()?;
    let worker = thread_of(process, "proxy-1")?;
    // It stands still, and the rest of its process does not.
    ptrace::seize(worker, ptrace::Options::empty())?;
    ptrace::interrupt(worker)?;
    // Whoever traces a thread has to take note of its end, or its process does not end.
    while waitpid(worker, Some(WaitPidFlag::__WALL))?.pid().is_some_and(|_| is_traced(worker)) {}
    another(&cloud.agent, process)?;
    is_gone(process)?;
    own_identity(&guest)?;
    cloud.agent.wait_logged(&["worker 1 has been stuck for 20 s"]).map(drop)
}

/// An agent that stood still for longer than it waits for the other process goes on with that one.
#[test]
fn an_agent_that_stood_still_does_not_end_its_process() -> Result<()> {
    let cloud = Cloud::with_inventory()?;
    let [guest, _] = cloud.overlapping_guests()?;
    own_identity(&guest)?;
    let (agent, process) = (cloud.agent.id()?, cloud.agent.guest_process()?);
    end(agent, Signal::SIGSTOP)?;
    thread::sleep(Duration::from_secs(23));
    end(agent, Signal::SIGCONT)?;
    // It is asked how it is each second.
    thread::sleep(Duration::from_secs(3));
    assert_eq!(cloud.agent.guest_process()?, process);
    assert_eq!(cloud.agent.metric("metadata_guest_process_restarts_total")?, 0.0);
    own_identity(&guest)
}

fn thread_of(process: u32, name: &str) -> Result<Pid> {
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let thread = thread?;
        if fs::read_to_string(thread.path().join("comm"))?.trim() == name {
            let id: i32 = thread.file_name().to_string_lossy().parse()?;
            return Ok(Pid::from_raw(id));
        }
    }
    anyhow::bail!("process {process} has no thread {name}")
}

fn is_traced(thread: Pid) -> bool {
    Path::new(&format!("/proc/{thread}")).exists()
}
