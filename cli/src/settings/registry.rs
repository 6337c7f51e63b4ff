//! From settings and environment to what the library's registry takes.

use cfs_core::policy::Files;
use cfs_core::registry::{Options, Retry, Timeouts};

use super::{Environment, Settings};

impl Settings {
    /// Where credentials and registries' settings are for this user, how patient to be, and whom to trust without TLS.
    pub fn registry_options(&self, environment: &Environment) -> Options {
        let registry = &self.registry;
        let usual = Options::usual(&environment.registry);
        Options {
            insecure: registry.insecure.clone(),
            policy: registry.policy.clone().map_or(usual.policy.clone(), Files::Only),
            proxy: environment.proxy.clone(),
            retry: Retry {
                attempts: registry.retries.saturating_add(1),
                ..Retry::default()
            },
            timeouts: Timeouts {
                connect: registry.connect_timeout,
                idle: registry.read_timeout,
                ..Timeouts::default()
            },
            temporary: environment.temporary.clone(),
            ..usual
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_and_timeouts_arrive() {
        let mut settings = Settings::default();
        settings.registry.retries = 0;
        settings.registry.insecure = vec!["lan:5000".into()];
        let options = settings.registry_options(&Environment::default());
        assert_eq!(options.retry.attempts, 1);
        assert_eq!(options.insecure, ["lan:5000"]);
        assert_eq!(options.timeouts.idle, settings.registry.read_timeout);
    }
}
