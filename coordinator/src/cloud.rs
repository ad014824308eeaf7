//! Stores behind HTTP, made from a URL and the variables of their kind, with bounded patience.

use std::sync::Arc;
#[cfg(feature = "cloud")]
use std::time::Duration;

use object_store::memory::InMemory;
#[cfg(feature = "cloud")]
use object_store::{BackoffConfig, RetryConfig};
use object_store::{ObjectStore, ObjectStoreScheme};
use url::Url;

/// A kind of store that can hold runs.
pub(crate) struct Kind {
    /// How the names of its environment variables begin; each kind reads its own only, so that a stray TOKEN or REGION
    /// changes nothing.
    pub(crate) variables: &'static str,
    /// How people say where its credentials come from.
    pub(crate) credentials: &'static str,
    /// The cargo feature that brings it.
    pub(crate) feature: &'static str,
    /// Whether that was asked for.
    pub(crate) built: bool,
}

/// What is known of the kind; `None` if it cannot hold runs.
pub(crate) fn kind(scheme: &ObjectStoreScheme) -> Option<Kind> {
    let (variables, credentials, feature, built) = match scheme {
        ObjectStoreScheme::Memory => ("", "", "", true),
        ObjectStoreScheme::AmazonS3 => (
            "AWS_",
            " (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, with AWS_ENDPOINT for a store that is not Amazon's)",
            "aws",
            cfg!(feature = "aws"),
        ),
        ObjectStoreScheme::GoogleCloudStorage => {
            ("GOOGLE_", " (GOOGLE_SERVICE_ACCOUNT)", "gcp", cfg!(feature = "gcp"))
        }
        ObjectStoreScheme::MicrosoftAzure => (
            "AZURE_",
            " (AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY)",
            "azure",
            cfg!(feature = "azure"),
        ),
        _ => return None,
    };
    Some(Kind { variables, credentials, feature, built })
}

#[cfg(feature = "cloud")]
macro_rules! configured {
    ($builder:ty, $url:expr, $variables:expr) => {{
        let builder = environment($variables).fold(
            <$builder>::new().with_url($url.as_str()),
            |builder, (name, value)| match name.to_ascii_lowercase().parse() {
                Ok(key) => builder.with_config(key, value),
                Err(_) => builder, // some variables are for other programs
            },
        );
        Arc::new(builder.with_retry(patience()).build()?)
    }};
}

/// Opens the store of `url`.
///
/// # Errors
/// If the URL or a variable does not fit. Nothing is sent yet.
pub(crate) fn open(scheme: &ObjectStoreScheme, url: &Url) -> object_store::Result<Arc<dyn ObjectStore>> {
    #[cfg(feature = "cloud")]
    let _ = rustls::crypto::ring::default_provider().install_default(); // fails if there is one, which serves as well
    Ok(match scheme {
        #[cfg(feature = "aws")]
        ObjectStoreScheme::AmazonS3 => configured!(object_store::aws::AmazonS3Builder, url, "AWS_"),
        #[cfg(feature = "gcp")]
        ObjectStoreScheme::GoogleCloudStorage => {
            configured!(object_store::gcp::GoogleCloudStorageBuilder, url, "GOOGLE_")
        }
        #[cfg(feature = "azure")]
        ObjectStoreScheme::MicrosoftAzure => {
            configured!(object_store::azure::MicrosoftAzureBuilder, url, "AZURE_")
        }
        ObjectStoreScheme::Memory => Arc::new(InMemory::new()),
        _ => {
            let source = format!("{url} is of a kind that this program was built without").into();
            return Err(object_store::Error::Generic { store: "cloud", source });
        }
    })
}

#[cfg(feature = "cloud")]
fn environment(prefix: &str) -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(move |(name, _)| name.starts_with(prefix))
}

/// A store that is away is asked again for a minute, and answers within two seconds of its return.
#[cfg(feature = "cloud")]
fn patience() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig { max_backoff: Duration::from_secs(2), ..BackoffConfig::default() },
        max_retries: usize::MAX,
        retry_timeout: Duration::from_secs(60),
    }
}
