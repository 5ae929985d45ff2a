//! Finds events in bytes without copying them.

use pilot_plugin::wire::service::event_stream::{MAX_TOPIC, TooLong};

/// An event in its wire form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    /// All of it, as it came and as it goes on.
    pub(crate) bytes: &'a [u8],
    pub(crate) topic: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The event at the beginning of `bytes`, if it is whole.
    ///
    /// # Errors
    /// When a length exceeds its limit; the stream is out of step for good.
    pub(crate) fn read(bytes: &'a [u8], max_payload: usize) -> Result<Option<Self>, TooLong> {
        let Some((length, rest)) = bytes.split_first_chunk() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes(*length));
        if length > MAX_TOPIC {
            return Err(TooLong::Topic(length));
        }
        let Some((topic, rest)) = rest.split_at_checked(length) else { return Ok(None) };
        let Some((length, rest)) = rest.split_first_chunk() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > max_payload {
            return Err(TooLong::Payload(length, max_payload));
        }
        let Some((payload, rest)) = rest.split_at_checked(length) else { return Ok(None) };
        let bytes = &bytes[..bytes.len() - rest.len()];
        Ok(Some(Self { bytes, topic, payload }))
    }
}

#[cfg(test)]
mod tests {
    use pilot_plugin::json::{self, Value};
    use pilot_plugin::wire::service::event_stream::{Decoder, Event};
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 1 << 24;

    #[test]
    fn published_events() {
        let vectors: Value =
            json::from_str(include_str!("../../../tests/vectors/eventstream.json")).unwrap();
        for event in vectors["events"].as_array().unwrap() {
            let wire = hex::decode(event["wire"].as_str().unwrap()).unwrap();
            let payload = hex::decode(event["payload"].as_str().unwrap()).unwrap();
            let topic = event["topic"].as_str().unwrap().as_bytes();
            let expected = Frame { bytes: &wire, topic, payload: &payload };
            assert_eq!(Frame::read(&wire, MAX), Ok(Some(expected)));
            for n in 0..wire.len() {
                assert_eq!(Frame::read(&wire[..n], MAX), Ok(None));
            }
        }
        assert_eq!(Frame::read(&[4, 1], MAX), Err(TooLong::Topic(1025)));
        assert_eq!(Frame::read(&[4, 0], MAX), Ok(None));
        let long = [0, 0, 1, 0, 0, 1];
        assert_eq!(Frame::read(&long, MAX), Err(TooLong::Payload(MAX + 1, MAX)));
        assert_eq!(Frame::read(&[0, 0, 1, 0, 0, 0], MAX), Ok(None));
    }

    proptest! {
        #[test]
        fn reads_what_the_codec_reads(
            bytes in prop::collection::vec(prop_oneof![3 => 0u8..5, 1 => any::<u8>()], 0..200),
        ) {
            let mut decoder = Decoder::new(100);
            decoder.push(&bytes);
            let mut rest = &bytes[..];
            loop {
                let frame = Frame::read(rest, 100);
                let expected = decoder.next_event();
                match frame {
                    Ok(Some(frame)) => {
                        let event = Event::new(frame.topic, frame.payload);
                        prop_assert_eq!(expected, Ok(Some(event)));
                        rest = &rest[frame.bytes.len()..];
                    }
                    Ok(None) => { prop_assert_eq!(expected, Ok(None)); break }
                    Err(why) => { prop_assert_eq!(expected, Err(why)); break }
                }
            }
        }
    }
}
