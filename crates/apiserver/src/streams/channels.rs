//! The messages of Kubernetes' WebSocket subprotocols: the first byte says which channel, the rest is data.
//!
//! | channel | exec, attach | port-forward, port number n |
//! |---|---|---|
//! | 0 | stdin | 2n: data |
//! | 1, 2 | stdout, stderr | 2n + 1: errors |
//! | 3 | how it ended | |
//! | 4 | terminal size | |
//! | 255 | (version 5) the named channel ends | |
//!
//! In the base64 variants the message is text: the channel's digit, then the data in base64.
//! Source: KEP 4006 and `k8s.io/apimachinery/pkg/util/remotecommand`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use tokio_tungstenite::tungstenite::Message;

use super::remote::{Ended, FromClient, ToClient};

pub(super) const STDIN: u8 = 0;
pub(super) const STDOUT: u8 = 1;
pub(super) const STDERR: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// A subprotocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Protocol {
    /// As it is negotiated; empty where the client named none.
    pub(super) name: &'static str,
    base64: bool,
    /// The end is told as a Status.
    status: bool,
    /// A channel can be closed alone.
    close: bool,
}

/// All that are spoken for exec and attach; port-forward has the middle ones.
const PROTOCOLS: [Protocol; 6] = [
    Protocol { name: "v5.channel.k8s.io", base64: false, status: true, close: true },
    Protocol { name: "v4.channel.k8s.io", base64: false, status: true, close: false },
    Protocol { name: "v4.base64.channel.k8s.io", base64: true, status: true, close: false },
    Protocol { name: "channel.k8s.io", base64: false, status: false, close: false },
    Protocol { name: "base64.channel.k8s.io", base64: true, status: false, close: false },
    Protocol { name: "", base64: false, status: false, close: false },
];

impl Protocol {
    /// The first of those offered (in the order in which the client likes them) that is spoken here. A client that
    /// offers nothing gets the oldest.
    pub(super) fn choose(offered: &[String]) -> Option<Self> {
        if offered.is_empty() {
            return PROTOCOLS.last().copied();
        }
        offered.iter().find_map(|name| PROTOCOLS.iter().find(|p| !name.is_empty() && p.name == name)).copied()
    }

    /// A message on a channel.
    pub(super) fn message(self, channel: u8, data: &[u8]) -> Message {
        if self.base64 {
            let mut text = String::with_capacity(1 + data.len().div_ceil(3) * 4);
            text.push(char::from(b'0' + channel));
            STANDARD.encode_string(data, &mut text);
            return Message::text(text);
        }
        let mut bytes = BytesMut::with_capacity(1 + data.len());
        bytes.extend_from_slice(&[channel]);
        bytes.extend_from_slice(data);
        Message::binary(bytes.freeze())
    }

    /// Channel and data of a message; `None` where it is none of this protocol's.
    pub(super) fn split(self, message: Message) -> Option<(u8, Bytes)> {
        let mut data = match message {
            Message::Binary(data) => data,
            Message::Text(text) => Bytes::from(text),
            _ => return None,
        };
        if data.is_empty() {
            return None;
        }
        let channel = data.split_to(1)[0];
        if self.base64 {
            let channel = channel.checked_sub(b'0').filter(|channel| *channel < 10)?;
            return Some((channel, STANDARD.decode(&data).ok()?.into()));
        }
        Some((channel, data))
    }

    /// What a client's message means for a process; `None` where it means nothing.
    pub(super) fn to_process(self, message: Message) -> Option<FromClient> {
        let (channel, data) = self.split(message)?;
        match channel {
            // Clients open the channel with an empty message.
            STDIN if data.is_empty() => None,
            STDIN => Some(FromClient::Stdin(data)),
            RESIZE => {
                let size: Size = serde_json::from_slice(&data).ok()?;
                Some(FromClient::Resize { width: size.width, height: size.height })
            }
            CLOSE if self.close && data[..] == [STDIN] => Some(FromClient::StdinEof),
            _ => None,
        }
    }

    /// The message for what a process says; `None` where this protocol does not say it.
    pub(super) fn to_client(self, item: &ToClient) -> Option<Message> {
        match item {
            ToClient::Stdout(data) => Some(self.message(STDOUT, data)),
            ToClient::Stderr(data) => Some(self.message(STDERR, data)),
            ToClient::Done(ended) => self.end(ended),
        }
    }

    fn end(self, ended: &Ended) -> Option<Message> {
        if self.status {
            return Some(self.message(ERROR, ended.to_status().to_string().as_bytes()));
        }
        let text = ended.message();
        (!text.is_empty()).then(|| self.message(ERROR, text.as_bytes()))
    }
}

/// A terminal's size, as clients write it.
#[derive(Deserialize)]
struct Size {
    #[serde(rename = "Width")]
    width: u16,
    #[serde(rename = "Height")]
    height: u16,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn protocol(name: &str) -> Protocol {
        Protocol::choose(&[name.to_owned()]).expect("spoken")
    }

    #[test]
    fn the_clients_order_counts() {
        let offered = ["v9.channel.k8s.io", "v4.channel.k8s.io", "v5.channel.k8s.io"].map(str::to_owned);
        assert_eq!(Protocol::choose(&offered).unwrap().name, "v4.channel.k8s.io");
        assert_eq!(Protocol::choose(&["x".to_owned()]), None);
        assert_eq!(Protocol::choose(&[]).unwrap().name, "");
    }

    #[test]
    fn stdin_resize_and_close_are_understood() {
        let v5 = protocol("v5.channel.k8s.io");
        assert_eq!(v5.to_process(Message::binary(b"\0ls".to_vec())), Some(FromClient::Stdin("ls".into())));
        assert_eq!(v5.to_process(Message::binary(vec![255, 0])), Some(FromClient::StdinEof));
        assert_eq!(
            v5.to_process(Message::binary(b"\x04{\"Width\":80,\"Height\":24}".to_vec())),
            Some(FromClient::Resize { width: 80, height: 24 })
        );
        assert_eq!(protocol("v4.channel.k8s.io").to_process(Message::binary(vec![255, 0])), None);
    }

    proptest! {
        #[test]
        fn data_survives_both_encodings(data in proptest::collection::vec(any::<u8>(), 0..100), channel in 0u8..10) {
            for name in ["v4.channel.k8s.io", "v4.base64.channel.k8s.io"] {
                let protocol = protocol(name);
                let back = protocol.split(protocol.message(channel, &data));
                prop_assert_eq!(back, Some((channel, Bytes::from(data.clone()))));
            }
        }

        #[test]
        fn no_message_makes_it_panic(data in proptest::collection::vec(any::<u8>(), 0..40)) {
            for protocol in PROTOCOLS {
                protocol.to_process(Message::binary(data.clone()));
            }
        }
    }
}
