//! Request bodies: read and decode within limits, and stamp.

mod body_buffer;
mod content_type;
mod encoding;
mod inflight;
mod read;
mod stamp;

pub(super) use self::content_type::check as check_content_type;
pub(super) use self::encoding::Encoding;
pub(super) use self::inflight::Inflight;
pub(super) use self::read::{Received, read};
pub(super) use self::stamp::{add as add_stamps, members as stamp_members};
