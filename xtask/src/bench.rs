//! Measurements: the programs that make them, with what they compare with installed and built before.
use clap::{Args, Subcommand, ValueEnum};

use crate::{
    build,
    command::{cargo, run},
    setup,
};

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Cost of the datapath to bystanders and guests.
    Datapath,
    /// One guest's requests beside another that floods from a tap as a hypervisor makes it, and the cost of a dropped frame.
    Floods {
        /// Options and parts of the measurement; `--help` tells them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Time to a guest's first answer, cost of a restart to guests, and memory by networks, on a real OVN.
    Control {
        /// Memory only.
        #[arg(long)]
        memory: bool,
    },
    /// Cost of the proxy next to a bare relay and haproxy, to one guest and to all of them.
    Proxy {
        /// Only this part of it.
        part: Option<ProxyPart>,
    },
    /// Cost of many guests on one node: start, adoption, memory, plugging, and the kernel's RTNL lock.
    Taps {
        /// Options of the measurement; `--help` tells them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// 200 guests that boot within ten seconds, each as cloud-init does, before a Nova that takes its time.
    Boot,
    /// Memory, descriptors and latency in time, while taps, databases and Nova come and go; draws the curves.
    Soak {
        /// Options of the measurement; `--help` tells them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// This agent beside neutron-ovn-metadata-agent with haproxy, on one chassis with a real OVN; draws the comparison.
    Incumbent {
        /// Options and parts of the measurement; `--help` tells them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// The packages' dashboard with what Prometheus makes of an agent's four minutes; draws it.
    Dashboard {
        /// Options of the drawing; `--help` tells them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Cost of all hosts' agents to the Southbound of a region, by their way to ask for ports.
    Southbound {
        /// Options of the measurement; `--help` tells them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// ovsdb-client against Open vSwitch's clients in C and Python, on a Southbound of a region's size.
    Ovsdb {
        /// Ports in the Southbound.
        #[arg(long, default_value_t = 100_000)]
        rows: u32,
        /// Runs of each client, of which the median counts.
        #[arg(long, default_value_t = 3)]
        runs: u32,
    },
}

/// A part of what is measured of the proxy.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ProxyPart {
    /// Requests through each way, and their ratios.
    Requests,
    /// System calls of a request, and a flame graph for each load in the current folder.
    Profile,
    /// Memory for connections that are kept.
    Memory,
    /// Cost of session tokens.
    Tokens,
    /// One guest beside crowds.
    Crowd,
}

#[derive(Debug, Args)]
pub(crate) struct SimulateOptions {
    /// Options of the simulation; `--help` tells them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

/// Has agents' control planes meet a Southbound, without a kernel.
pub(crate) fn simulate(options: &SimulateOptions) -> anyhow::Result<()> {
    southbound("simulate", &options.options)
}

/// Measures and prints a table.
pub(crate) fn bench(options: &Options) -> anyhow::Result<()> {
    match &options.what {
        What::Datapath => {
            setup::for_tests()?;
            of_agent("bench-datapath", &[])
        }
        What::Floods { options } => {
            setup::for_tests()?;
            of_agent("bench-floods", options)
        }
        What::Control { memory } => {
            setup::for_tests()?;
            let only = memory.then(|| "--memory".to_owned());
            of_agent("bench-control", only.as_slice())
        }
        What::Taps { options } => {
            setup::for_tests()?;
            of_agent("bench-taps", options)
        }
        What::Boot => {
            setup::for_tests()?;
            of_agent("bench-boot", &[])
        }
        What::Soak { options } => {
            setup::for_tests()?;
            of_agent("bench-soak", options)
        }
        What::Incumbent { options } => {
            let environment = format!("--environment={}", setup::for_incumbent_bench()?.display());
            of_agent("bench-incumbent", &[&[environment], options.as_slice()].concat())
        }
        What::Dashboard { options } => {
            setup::for_tests()?;
            of_agent("bench-dashboard", options)
        }
        What::Proxy { part } => {
            setup::for_proxy_bench(matches!(part, Some(ProxyPart::Profile)))?;
            let part = part.and_then(|part| part.to_possible_value());
            let part: Vec<_> = part.iter().map(|part| part.get_name().to_owned()).collect();
            of_agent("bench-proxy", &part)
        }
        What::Southbound { options } => {
            southbound("bench-ovsdb", &[&["southbound".to_owned()], options.as_slice()].concat())
        }
        What::Ovsdb { rows, runs } => southbound(
            "bench-ovsdb",
            &["clients".to_owned(), format!("--rows={rows}"), format!("--runs={runs}")],
        ),
    }
}

/// Runs a program that measures the agent as it would be installed.
fn of_agent(program: &str, options: &[String]) -> anyhow::Result<()> {
    let agent = build::build(&build::Options { release: true })?;
    let mut command = cargo();
    command.args(["run", "--locked", "--release", "--package", "metadata-tests", "--bin", program, "--"]);
    command.args(options);
    run(command.env("METADATA_AGENT_BIN", agent))
}

/// Runs a program that needs nothing but a Southbound.
fn southbound(program: &str, arguments: &[String]) -> anyhow::Result<()> {
    setup::for_ovsdb_bench()?;
    let mut command = cargo();
    command.args(["run", "--locked", "--release", "--package", "metadata-tests", "--bin", program, "--"]);
    run(command.args(arguments))
}
