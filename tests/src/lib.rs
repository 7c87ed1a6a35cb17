//! Parts of the end-to-end tests and of the demo: guests, a chassis for them to live on, a Nova, the agent.
//!
//! ```text
//! sandbox   unique names and a run directory, swept when their process is gone
//! netns     network namespaces        process   daemons that die with us     command   programs that end
//! port      networks and ports        guest     a namespace with a NIC       http      its HTTP client
//! tap       a NIC as a hypervisor makes it           trunk   one with VLANs     vlan   their tags in its frames
//! station   no more than a tap's frames, written and read by the test
//! ovn::Lab  one chassis with a real OVN and Open vSwitch
//! two_chassis   of one OVN, each with an agent and a Nova, between which machines move
//! stage     one chassis with taps and bridges only
//! nova      the metadata API          upstream  exact bytes in its place     pki       certificates for it
//! agent     the program under test, running                 program   where it was built
//! container the same in a container, as kolla runs one
//! service   the same as its packaged unit starts it, under systemd                   kernel    which one runs us
//! programs  the eBPF programs on single frames     model     what they should do      interpreter   what that takes
//! capture   what arrives at a guest's NIC
//! cloud     a chassis, a Nova and an agent, ready for a test      check     what every test asks of an answer
//! cloud_init   what Debian's suites have of it, run inside a guest
//! first_answer   how soon a plugged guest is answered                              spread    figures of several rounds
//! dashboard  the packages' one: its panels and their queries, held against Grafana's types
//! prometheus  a real one that scrapes an agent             chart     lines as a picture
//! load      as much as a guest's connections can ask         world     a part of the machine for one program
//! flood     a guest that writes frames to its tap as fast as processors can
//! traffic   guests that ask all the time, and must not notice what happens meanwhile
//! astray    a Nova that breaks framing, and marks each answer with whose it is          random    by a seed
//! region    thousands of ports in a real Southbound, and the control planes of their hosts, without a kernel
//! ```

pub mod agent;
pub mod astray;
pub mod capture;
pub mod chart;
pub mod check;
pub mod cloud;
pub mod cloud_init;
pub mod command;
pub mod container;
pub mod dashboard;
#[cfg(test)]
mod documents;
pub mod first_answer;
pub mod flood;
pub mod guest;
pub mod http;
pub mod interpreter;
pub mod kernel;
pub mod load;
pub mod machine;
pub mod model;
pub mod netns;
pub mod nova;
pub mod ovn;
pub mod pki;
pub mod port;
pub mod process;
pub mod program;
pub mod programs;
pub mod prometheus;
pub mod random;
pub mod region;
pub mod sandbox;
pub mod service;
pub mod spread;
pub mod stage;
pub mod station;
pub mod tap;
pub mod traffic;
pub mod trunk;
pub mod two_chassis;
pub mod upstream;
pub(crate) mod vlan;
pub mod wait;
pub mod world;
