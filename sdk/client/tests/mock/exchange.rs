//! Port 1001 of the mock: takes frames, keeps nothing, answers each.

use pilot_wire::service::data_exchange::{FrameHeader, HEADER_LEN, Kind, split_file};

pub struct Exchange {
    large_files: bool,
    buffer: Vec<u8>,
    received: u64,
}

impl Exchange {
    pub fn new(large_files: bool) -> Self {
        Self { large_files, buffer: Vec::new(), received: 0 }
    }

    /// Takes bytes; gives the answers to whole frames among them.
    pub fn push(&mut self, data: &[u8]) -> Vec<u8> {
        self.buffer.extend_from_slice(data);
        let mut answers = Vec::new();
        while let Some(header) = self.buffer.first_chunk::<HEADER_LEN>() {
            let header = FrameHeader::decode(*header).expect("a frame within the limit");
            if self.buffer.len() < HEADER_LEN + header.len {
                break;
            }
            let frame: Vec<u8> = self.buffer.drain(..HEADER_LEN + header.len).collect();
            if let Some(text) = self.answer(header.kind, &frame[HEADER_LEN..]) {
                let answer = FrameHeader { kind: Kind::Text, len: text.len() };
                answers.extend_from_slice(&answer.encode());
                answers.extend_from_slice(text.as_bytes());
            }
        }
        answers
    }

    fn answer(&mut self, kind: Kind, payload: &[u8]) -> Option<String> {
        let known =
            self.large_files || !matches!(kind, Kind::FileBegin | Kind::FileChunk | Kind::FileEnd);
        if !known {
            return Some(format!("ACK UNKNOWN({}) {} bytes", kind.number(), payload.len()));
        }
        match kind {
            Kind::FileBegin => {
                self.received = 0;
                Some(format!("ACK FILE-BEGIN {} bytes", payload.len()))
            }
            Kind::FileChunk => {
                self.received += payload.len() as u64;
                None
            }
            Kind::FileEnd => Some(format!("ACK FILE {} bytes", self.received)),
            Kind::File => Some(format!("ACK FILE {} bytes", split_file(payload).1.len())),
            kind => Some(format!("ACK {kind} {} bytes", payload.len())),
        }
    }
}
