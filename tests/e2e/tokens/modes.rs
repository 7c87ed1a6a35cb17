//! Modes of session tokens: for the node, projects and networks, and the time in which a boot needs none.

use anyhow::{Context as _, Result, ensure};
use metadata_ebpf::map::LAYOUT;
use metadata_tests::{
    agent::Options,
    check::own_identity,
    cloud::Cloud,
    guest::Guest,
    stage::{Path, Stage},
    wait::until,
};

use super::{SOON, USER_DATA, ask_for_token, cloud, get_with, options};

#[test]
fn the_mode_is_that_of_network_project_or_node() -> Result<()> {
    let mut cloud = Cloud::on(Stage::start()?, &Options::default())?;
    let guests: [Guest; 4] = cloud.guests()?;
    for guest in &guests {
        cloud.nova.set_user_data(&guest.port, guest.port.instance.clone());
    }
    // Without any of it everything is Nova's, and nothing is kept.
    let [plain, ..] = &guests;
    assert_eq!(ask_for_token(plain, "60")?.status, 404);
    assert_eq!(get_with(plain, USER_DATA, "nonsense")?.status, 200);
    assert!(!cloud.agent.run_dir().join("token.key").exists());

    let [of_node, of_project, of_network, without] = &guests;
    let lines = [
        "token_mode = optional".to_owned(),
        format!(
            "token_projects = {}*:required {}:off",
            &of_project.port.project[..12],
            of_network.port.project
        ),
        format!(
            "token_networks = {}:required, {}*:off",
            of_network.port.network,
            &without.port.network[..13]
        ),
    ];
    cloud.agent.configure(&cloud.chassis, &options(&lines.each_ref().map(String::as_str)))?;
    let mut former = cloud.agent.replace()?;
    former.wait()?;
    cloud.agent.wait_ready()?;
    for (guest, mode, put, get) in [
        (of_node, "optional", 200, 200),
        (of_project, "required", 200, 401),
        (of_network, "required", 200, 401),
        (without, "off", 404, 200),
    ] {
        assert_eq!(ask_for_token(guest, "60")?.status, put, "{mode}");
        assert_eq!(guest.get(USER_DATA)?.status, get, "{mode}");
        own_identity(guest)?;
        let ports: serde_json::Value = serde_json::from_slice(&cloud.agent.admin("GET", "/ports")?.body)?;
        let told = ports.as_array().into_iter().flatten().find(|port| port["port"] == guest.port.id.as_str());
        assert_eq!(told.context("it is not listed")?["tokens"], mode);
    }
    until("all is counted", SOON, || {
        for (outcome, expected) in
            [("issued", 3.0), ("without_where_optional", 1.0), ("token_missing", 2.0), ("without", 6.0)]
        {
            let counted = cloud.agent.metric(&format!("metadata_tokens_total{{outcome=\"{outcome}\"}}"))?;
            ensure!(counted == expected, "{outcome}: {counted}");
        }
        ensure!(cloud.agent.metric("metadata_requests_total{by=\"agent\",status=\"200\"}")? == 3.0);
        Ok(())
    })
}

/// A boot has its time without tokens, once: not again with another agent, nor with a new configuration.
#[test]
fn the_time_without_tokens_does_not_come_back() -> Result<()> {
    let window = ["token_mode = required", "token_required_after = 4"];
    let (mut cloud, [guest, other]) = cloud(&window)?;
    let statuses = |guest: &Guest| -> Result<[u16; 2]> {
        Ok([guest.get(USER_DATA)?.status, guest.get("/latest/meta-data/instance-id")?.status])
    };
    until("tokens are required", SOON, || {
        let found = statuses(&guest)?;
        ensure!(found == [401, 200], "{found:?}");
        Ok(())
    })?;
    let log = cloud.agent.wait_logged(&["token=\"token_missing\""])?;
    println!("{} were served before", log.matches("token=\"without_yet\"").count());
    for kill in [false, true] {
        if kill {
            cloud.agent.kill()?;
        } else {
            cloud.agent.stop()?;
        }
        cloud.agent.resume()?;
        assert_eq!(statuses(&guest)?, [401, 200]);
        cloud.agent.wait_ready()?;
    }
    // A longer time is counted from the beginning, too, which has been noted.
    let longer = ["token_mode = required", "token_required_after = 86400"];
    cloud.agent.configure(&cloud.chassis, &options(&longer))?;
    let mut former = cloud.agent.replace()?;
    former.wait()?;
    cloud.agent.wait_ready()?;
    assert_eq!(statuses(&guest)?, [200, 200]);
    // Where it was not, the port is an old one.
    std::fs::remove_file(cloud.agent.run_dir().join("first-served.json"))?;
    let mut former = cloud.agent.replace()?;
    former.wait()?;
    cloud.agent.wait_ready()?;
    assert_eq!(statuses(&guest)?, [401, 200]);
    // Whoever comes anew has it, and keeps it over a restart.
    cloud.chassis.stop_tap(&other)?;
    cloud.agent.wait_gone(&other.port.tap)?;
    cloud.chassis.start_tap(&other, Path::OnLink)?;
    cloud.agent.wait_served(&other, cloud.chassis.ifindex(&other)?)?;
    assert_eq!(statuses(&other)?, [200, 200]);
    cloud.agent.kill()?;
    cloud.agent.resume()?;
    assert_eq!((statuses(&other)?, statuses(&guest)?), ([200, 200], [401, 200]));
    // Nor with maps that are made anew, and assignments with them.
    cloud.agent.wait_ready()?;
    cloud.agent.stop()?;
    std::fs::remove_dir_all(cloud.agent.run_dir().join(format!("bpf/layout-{LAYOUT}")))?;
    cloud.agent.resume()?;
    cloud.agent.wait_ready()?;
    assert_eq!((statuses(&other)?, statuses(&guest)?), ([200, 200], [401, 200]));
    let ports = cloud.agent.admin("GET", "/ports")?.text();
    assert!(ports.contains("required in 86") && ports.contains("\"tokens\": \"required\""), "{ports}");
    Ok(())
}
