//! Relations between settings, which the type of one value cannot express.

use bytesize::ByteSize;

use super::{Access, Config, Error, Setting, named};

impl Config {
    /// Checks the relations between settings. `is_checked` says which settings have valid values.
    pub(super) fn contradictions(
        &self,
        is_checked: impl Fn(&str) -> bool,
        value: &dyn Fn(&Setting) -> String,
    ) -> Vec<Error> {
        let size = |bytes: usize| ByteSize(bytes as u64);
        // The setting, another one that it depends on, whether the rule holds, and valid values.
        let rules = [
            ("MAX_BODY_BYTES", "MAX_BODY_BYTES", self.max_body_bytes >= 2, "at least 2 bytes".to_owned()),
            (
                "BATCH_BYTES",
                "MAX_BODY_BYTES",
                self.batch_bytes > self.max_body_bytes,
                format!("more than MAX_BODY_BYTES, which is {}", size(self.max_body_bytes)),
            ),
            (
                "BUFFER_BYTES",
                "BATCH_BYTES",
                self.buffer_bytes >= self.batch_bytes.saturating_mul(2),
                format!("at least twice BATCH_BYTES, which is {}", size(self.batch_bytes)),
            ),
            (
                "INFLIGHT_BYTES",
                "MAX_BODY_BYTES",
                // The longest compressed body and the body that it decodes to.
                self.inflight_bytes >= self.max_body_bytes.saturating_mul(2),
                format!("at least twice MAX_BODY_BYTES, which is {}", size(self.max_body_bytes)),
            ),
            (
                "KEY_RATE_LIMIT",
                "WRITE_KEYS",
                self.key_rate_limit.is_none() || !self.write_keys.is_empty() || self.write_keys_file.is_some(),
                "off while WRITE_KEYS and WRITE_KEYS_FILE are none".to_owned(),
            ),
            (
                "ADMIN_TOKEN",
                "ADMIN_LISTEN",
                !self.admin_token.is_open() || self.admin_listen.is_some(),
                "a token while ADMIN_LISTEN is off, because everybody who can send reports could read them".to_owned(),
            ),
            (
                "ADMIN_TOKEN",
                "WRITE_KEYS",
                !self.write_keys.iter().any(|key| self.admin_token.check(Some(key.as_bytes())) == Access::Granted)
                    || self.admin_token.is_open(),
                "different from all WRITE_KEYS, because browsers know these".to_owned(),
            ),
            (
                "METRICS_PASSWORD",
                "METRICS_USERNAME",
                self.metrics_password.is_some() == self.metrics_username.is_some(),
                "set together with METRICS_USERNAME".to_owned(),
            ),
            (
                "RETENTION_ON_FULL",
                "MIN_FREE_BYTES",
                !self.retention_on_full || self.min_free_bytes > 0,
                "off while MIN_FREE_BYTES is off".to_owned(),
            ),
            (
                "PROXY_PROTOCOL",
                "TRUSTED_PROXIES",
                !self.proxy_protocol || !self.trusted_proxies.is_empty(),
                "off while TRUSTED_PROXIES is none".to_owned(),
            ),
        ];
        let is_broken =
            |(name, other, holds, _): &(&str, &str, bool, String)| !holds && is_checked(name) && is_checked(other);
        let error = |(name, _, _, takes)| {
            let setting = named(name);
            Error::Value { name, value: setting.shown(&value(setting)), takes }
        };
        rules.into_iter().filter(is_broken).map(error).collect()
    }
}
