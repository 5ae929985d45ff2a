//! Port 7: sends back every byte, in order, without a copy (protocol page
//! "Services", section 2).
#![forbid(unsafe_code)]

use pilot_plugin::{Error, Host, Manifest, NoConfig, Peer, Plugin, Stream};

struct Echo;

impl Plugin for Echo {
    type Config = NoConfig;

    fn manifest() -> Manifest {
        Manifest::new("echo", env!("CARGO_PKG_VERSION"))
            .describe("sends back every byte")
            .service("echo", &[7])
    }

    fn start(_: Host, _: NoConfig) -> Result<Self, Error> {
        Ok(Self)
    }

    async fn serve(&self, mut stream: Stream, _: Peer) -> Result<(), Error> {
        while let Some(data) = stream.recv().await? {
            stream.send(data).await?;
        }
        Ok(())
    }
}

pilot_plugin::export_plugin!(Echo);
