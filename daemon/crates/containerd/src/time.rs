//! Points in time as protobuf timestamps, as in containerd's messages.

use std::time::{Duration, SystemTime};

use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;

/// A point in time as a protobuf timestamp. A time before 1970 becomes 1970.
pub fn timestamp(at: SystemTime) -> MessageField<Timestamp> {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    MessageField::some(Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos() as i32,
        ..Default::default()
    })
}

/// The point in time of a protobuf timestamp. A field that is absent counts as 0.
pub fn system_time(at: &Timestamp) -> SystemTime {
    let seconds = u64::try_from(at.seconds).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::new(seconds, u32::try_from(at.nanos).unwrap_or_default().min(999_999_999))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_keeps_nanoseconds() {
        let at = SystemTime::UNIX_EPOCH + Duration::new(5, 7);
        let wire = timestamp(at);
        assert_eq!((wire.seconds, wire.nanos), (5, 7));
        assert_eq!(system_time(&wire), at);
    }
}
