//! The agent in a container: it serves, is restarted and upgraded without a lost guest, and names what it is not given.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use metadata_tests::{
    agent::Options,
    check::own_identity,
    cloud::{Chassis as _, Cloud},
    container::Image,
    ovn::Lab,
    traffic::{meanwhile, while_asking},
    wait::until,
};

/// A container is stopped and another one made; guests' TCP repeats a SYN after one, two and four seconds.
const RESTARTED: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_container_takes_over_is_restarted_and_upgraded() -> Result<()> {
    // Dropped last: what the agent leaves is removed by its program.
    let image;
    let lab = Lab::start()?;
    // Before the agent mounts something in the folder that becomes a mount.
    image = Image::load(lab.sandbox())?;
    let mut cloud = Cloud::on(lab, &Options::default())?;
    let guests = cloud.overlapping_guests()?;
    let runs_alone = |name: &str| {
        until(&format!("container {name} runs alone"), SOON, || {
            let running = image.running()?;
            ensure!(running == [name], "{running:?}");
            Ok(())
        })
    };

    // From a program of the host's: without a gap.
    meanwhile(&guests, || {
        cloud.agent.set_program(&image.program("one", "shared")?);
        let mut former = cloud.agent.replace()?;
        ensure!(former.wait()?.success());
        cloud.agent.wait_ready()
    })?;
    runs_alone("one")?;
    guests.iter().try_for_each(own_identity)?;

    // The container is made anew under its name, as kolla-ansible does.
    let asked = while_asking(&guests[0], |_| {
        cloud.agent.stop()?;
        cloud.agent.resume()?;
        cloud.agent.wait_ready()
    })?;
    ensure!(asked.gap() < RESTARTED, "{:?}", asked.gap());
    guests.iter().try_for_each(own_identity)?;

    // One beside it: without a gap.
    meanwhile(&guests, || {
        cloud.agent.set_program(&image.program("two", "shared")?);
        let mut former = cloud.agent.replace()?;
        ensure!(former.wait()?.success());
        cloud.agent.wait_ready()
    })?;
    runs_alone("two")?;
    guests.iter().try_for_each(own_identity)?;

    // And to the host again, for the clean-up.
    meanwhile(&guests, || {
        cloud.agent.set_program(&metadata_tests::program::of_agent()?);
        let mut former = cloud.agent.replace()?;
        ensure!(former.wait()?.success());
        cloud.agent.wait_ready()
    })?;
    Ok(())
}

#[test]
fn what_is_not_shared_is_named() -> Result<()> {
    // Dropped last: what the agent leaves is removed by its program.
    let image;
    let lab = Lab::start()?;
    // Before the agent mounts something in the folder that becomes a mount.
    image = Image::load(lab.sandbox())?;
    let mut cloud = Cloud::on(lab, &Options::default())?;
    cloud.agent.stop()?;
    let program = cloud.agent.program().to_owned();
    cloud.agent.set_program(&image.program("private", "private")?);
    let mut container = cloud.agent.another(&[])?;
    ensure!(!container.wait()?.success());
    let run_dir = cloud.agent.run_dir().display().to_string();
    cloud.agent.wait_logged(&["is not shared with the host's", &run_dir, ":shared"])?;
    cloud.agent.set_program(&program);
    Ok(())
}

/// kolla-ansible asks on each run, and makes the container anew where the answer is that files have changed.
#[test]
fn changed_files_are_noticed_as_kolla_ansible_asks() -> Result<()> {
    // Dropped last: what the agent leaves is removed by its program.
    let image;
    let lab = Lab::start()?;
    image = Image::load(lab.sandbox())?;
    let cloud = Cloud::on(lab, &Options::default())?;
    let guests = cloud.overlapping_guests()?;
    let folder = cloud.chassis.sandbox().path("kolla");
    fs::create_dir(&folder)?;
    fs::write(folder.join("neutron.conf"), "[DEFAULT]\n")?;
    let file = folder.join("neutron_ovn_metadata_agent.ini");
    let options = fs::read_to_string(cloud.chassis.sandbox().path("agent.conf"))?;
    fs::write(&file, &options)?;
    // It takes over from the host's.
    image.start(cloud.chassis.host(), "kolla", &folder)?;
    let asked = |expected: i32| {
        until(&format!("the answer is {expected}"), SOON, || {
            let status = image.compare_config("kolla")?;
            ensure!(status == expected, "{status}");
            Ok(())
        })
    };
    asked(0)?;
    guests.iter().try_for_each(own_identity)?;
    fs::write(&file, format!("{options}\n[DEFAULT]\ndebug = true\n"))?;
    asked(1)?;
    // What no agent could start with has kolla-ansible stop: any other status.
    fs::write(&file, format!("{options}\n[metadata_ebpf]\nnothing = 1\n"))?;
    asked(78)?;
    guests.iter().try_for_each(own_identity)?;
    fs::write(&file, &options)?;
    asked(0)
}
