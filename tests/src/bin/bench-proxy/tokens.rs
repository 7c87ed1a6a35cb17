//! The cost of session tokens: requests with a token that is checked, next to those of a guest without tokens, by one agent.

use anyhow::{Result, ensure};
use metadata_tests::{
    guest::METADATA,
    load::{Load, Mode},
    stage::Path,
};

use crate::{Bench, Figures, ROUNDS, Way, median};

/// Connections of each load.
const CONNECTIONS: [usize; 2] = [1, 32];

impl Bench {
    /// Prints a table of ratios.
    pub(crate) fn tokens(&self) -> Result<()> {
        let guest = self.cloud.chassis.add_guest(&self.with_tokens, Path::OnLink)?;
        let ports: Vec<_> = self.guests.iter().chain([&guest]).map(|guest| &guest.port).collect();
        self.cloud.chassis.write_inventory(&ports)?;
        self.cloud.agent.wait_served(&guest, self.cloud.chassis.ifindex(&guest)?)?;
        let ttl = ("X-aws-ec2-metadata-token-ttl-seconds", "21600");
        let token = guest.request("PUT", "/latest/api/token", &[ttl], b"")?;
        ensure!(token.status == 200, "{token:?}");
        let request = format!(
            "GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: 169.254.169.254\r\n\
             X-aws-ec2-metadata-token: {}\r\n\r\n",
            token.text()
        );
        let request: &'static [u8] = request.into_bytes().leak();
        println!("\n| a token checked : no tokens | requests/s | CPU per request | p50 |");
        println!("| --- | --- | --- | --- |");
        for connections in CONNECTIONS {
            let way = |guest| -> Result<Way<'_>> {
                Ok(Way { guest, address: METADATA, proxy: Some(self.cloud.agent.id()?) })
            };
            let (off, checked) = (way(&self.guests[0].netns)?, way(&guest.netns)?);
            let mut rounds = Vec::new();
            for _ in 0..2 * ROUNDS {
                rounds.push([
                    self.round(&off, Load { connections, mode: Mode::KeepAlive })?,
                    self.round(&checked, Load { connections, mode: Mode::KeepAliveWith(request) })?,
                ]);
            }
            let of = |figure: fn(&Figures) -> f64| {
                median(rounds.iter().map(|[off, checked]| figure(checked) / figure(off)).collect())
            };
            println!(
                "| {connections}, kept alive | {:.2} | {:.2} | {:.2} |",
                of(|figures| figures.rate),
                of(|figures| figures.cpu),
                of(|figures| figures.p50)
            );
        }
        Ok(())
    }
}
