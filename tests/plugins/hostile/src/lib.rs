//! A plugin that does everything wrong, one thing per `mode` of its
//! configuration. What needs the raw ABI is in `tests/plugins/hostile.c`.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::hint::black_box;
use std::task::{Poll, Waker};
use std::time::Duration;

use pilot_plugin::serde::{self, Deserialize};
use pilot_plugin::{
    Batch, Delivery, Error, Host, JoinRequest, JsonSchema, Manifest, Peer, Plugin, Stream, Verdict,
    json, schemars,
};

#[derive(Deserialize, JsonSchema)]
#[serde(crate = "self::serde", deny_unknown_fields)]
#[schemars(crate = "self::schemars")]
struct Config {
    /// What to do wrong.
    mode: String,
}

struct Hostile {
    host: Host,
    mode: String,
}

thread_local!(static KEPT: RefCell<Option<Loud>> = const { RefCell::new(None) });

/// Has a destructor that runs when its thread ends, in code of this library.
struct Loud(Vec<u8>);

impl Drop for Loud {
    fn drop(&mut self) {
        black_box(&self.0);
    }
}

/// Panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("on purpose, in a destructor");
    }
}

impl Hostile {
    fn is(&self, mode: &str) -> bool {
        self.mode == mode
    }

    fn misbehave(&self, callback: &str) {
        if self.mode == format!("panic-{callback}") {
            panic!("on purpose, in {callback}");
        }
        if self.mode == format!("hang-{callback}") {
            hang();
        }
        #[cfg(unix)]
        if self.mode == format!("abort-{callback}") {
            std::process::abort();
        }
        if self.mode == format!("allocate-{callback}") {
            let mut hog = Vec::new();
            loop {
                hog.push(black_box(vec![1u8; 16 << 20]));
            }
        }
        if self.mode == format!("overflow-{callback}") {
            black_box(overflow(1));
        }
    }
}

fn hang() {
    loop {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs out of stack, which is a segmentation fault.
#[expect(unconditional_recursion, reason = "on purpose")]
fn overflow(n: u64) -> u64 {
    let room = black_box([n; 512]);
    room[1] + overflow(n + 1)
}

impl Plugin for Hostile {
    type Config = Config;

    fn manifest() -> Manifest {
        Manifest::new("hostile", "1.0.0")
            .service("hostile", &[3000])
            .rule("hostile")
            .sink("hostile")
            .needs("test.echo")
    }

    fn start(host: Host, Config { mode }: Config) -> Result<Self, Error> {
        if mode == "fail-start" {
            return Err(Error::new("port 3000 is cursed"));
        }
        let this = Self { host: host.clone(), mode };
        this.misbehave("start");
        if this.is("bombs") {
            // Several futures whose destructors panic as the instance ends.
            for _ in 0..3 {
                let bomb = Bomb;
                host.spawn(async move {
                    let _bomb = bomb;
                    std::future::pending::<()>().await;
                });
            }
        }
        if this.is("panic-spawned") {
            host.spawn(async { panic!("on purpose, in a future of start") });
        }
        if this.is("panic-timer") {
            host.spawn({
                let host = host.clone();
                async move {
                    host.sleep(Duration::from_millis(1)).await;
                    panic!("on purpose, in a timer");
                }
            });
        }
        if this.is("thread-local") {
            KEPT.with(|kept| *kept.borrow_mut() = Some(Loud(vec![7; 1000])));
        }
        Ok(this)
    }

    fn self_test(&self) -> Result<(), Error> {
        self.misbehave("self-test");
        if self.is("fail-self-test") {
            return Err(Error::new("two and two are five"));
        }
        Ok(())
    }

    async fn serve(&self, mut stream: Stream, _: Peer) -> Result<(), Error> {
        self.misbehave("serve");
        if self.is("bomb-payload") {
            // What the panic carries panics as well.
            std::panic::panic_any(Bomb);
        }
        match self.mode.as_str() {
            "fail-serve" => {
                stream.write_all(b"half an ans").await?;
                return Err(Error::new("lost the other half"));
            }
            "flood-events" => {
                let mut refused = 0u32;
                for i in 0..100_000u32 {
                    refused += u32::from(self.host.emit("flood", json::json!({ "i": i })).is_err());
                }
                stream.write_all(refused.to_string().as_bytes()).await?;
                return Ok(());
            }
            "flood-log" => {
                for i in 0..100_000u32 {
                    self.host.log(pilot_plugin::Level::Debug, format!("line {i}"));
                }
            }
            "spin" => {
                // Ready at once, for ever: others must still get their turn.
                self.host.spawn(std::future::poll_fn(|cx| {
                    cx.waker().wake_by_ref();
                    Poll::<()>::Pending
                }));
            }
            "keep-waker" => {
                let mut waker: Option<Waker> = None;
                std::future::poll_fn(|cx| {
                    waker = Some(cx.waker().clone());
                    Poll::Ready(())
                })
                .await;
                // Used long after this instance has been stopped.
                std::thread::spawn(move || {
                    for _ in 0..200 {
                        std::thread::sleep(Duration::from_millis(5));
                        if let Some(waker) = &waker {
                            waker.wake_by_ref();
                        }
                    }
                });
            }
            "call" => {
                let answer = self.host.call("test.echo", json::json!({ "n": 1 })).await?;
                stream.write_all(answer.to_string().as_bytes()).await?;
                let failed = self.host.call("test.fail", json::json!(null)).await;
                stream.write_all(format!("{failed:?}").as_bytes()).await?;
                let unknown = self.host.call("test.none", json::json!(null)).await;
                stream.write_all(format!("{unknown:?}").as_bytes()).await?;
                return Ok(());
            }
            "dial" => {
                let mut other = self.host.dial("friend:9").await?;
                other.write_all(b"hello").await?;
                let nobody = self.host.dial("nobody:9").await;
                stream.write_all(format!("{:?}", nobody.err()).as_bytes()).await?;
                return Ok(());
            }
            "store" => {
                let store = self.host.store();
                let before = store.get("count")?.map_or(0, |v| v.len());
                store.put("count", &vec![b'x'; before + 1])?;
                let too_much = store.put("much", &vec![0; 2 << 20]);
                let keys = store.keys("co")?;
                let text = format!("{} {keys:?} {:?}", before + 1, too_much.err());
                stream.write_all(text.as_bytes()).await?;
                return Ok(());
            }
            "blocking" => {
                let sum = self.host.blocking(|| (0..1000u64).sum::<u64>()).await?;
                stream.write_all(sum.to_string().as_bytes()).await?;
                return Ok(());
            }
            "panic-blocking" => {
                self.host.blocking(|| panic!("on purpose, on another thread")).await?;
            }
            "slow" => {
                let timed = self.host.timeout(Duration::from_millis(20), stream.recv()).await;
                stream.write_all(if timed.is_none() { b"none" } else { b"some" }).await?;
                return Ok(());
            }
            _ => {}
        }
        while let Some(data) = stream.recv().await? {
            stream.send(data).await?;
        }
        Ok(())
    }

    async fn datagram(&self, from: Peer, port: u16, data: Vec<u8>) -> Result<(), Error> {
        self.misbehave("datagram");
        self.host.send_datagram(&from.address.to_string(), port, &data)
    }

    async fn validate(&self, request: JoinRequest) -> Result<Verdict, Error> {
        self.misbehave("validate");
        match self.mode.as_str() {
            "fail-validate" => Err(Error::new("cannot read the list")),
            "never-validate" => std::future::pending().await,
            _ if request.proof == "open sesame" => Ok(Verdict::allow()),
            _ => Ok(Verdict::deny("wrong word")),
        }
    }

    async fn deliver(&self, batch: Batch) -> Result<Delivery, Error> {
        self.misbehave("deliver");
        match self.mode.as_str() {
            "never-deliver" => std::future::pending().await,
            "slow-deliver" => {
                self.host.sleep(Duration::from_millis(5)).await;
                Ok(Delivery::Ack)
            }
            _ if batch.is_empty() => Ok(Delivery::reject("empty")),
            _ => Ok(Delivery::Ack),
        }
    }

    fn drain(&self) {
        if self.is("bomb-payload") {
            std::panic::panic_any(Bomb);
        }
        self.misbehave("drain");
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.misbehave("stop");
    }
}

pilot_plugin::export_plugin!(Hostile);
