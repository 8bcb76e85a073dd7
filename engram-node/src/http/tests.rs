use engram_core::storage::RocksOptions;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::seams::os;

struct Node {
    ready: Mutex<Result<(), String>>,
}

impl Health for Node {
    fn ready(&self) -> Result<(), String> {
        self.ready.lock().clone()
    }

    fn observe(&self) {
        ::metrics::gauge!("engram_http_test").set(7.0);
    }
}

async fn ask(seams: &Seams, address: SocketAddr, path: &str) -> String {
    let mut stream = seams
        .net
        .connect(&address.to_string())
        .await
        .expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nhost: engram\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer
}

#[tokio::test]
async fn the_port_tells_liveness_readiness_and_metrics() {
    let seams = os::seams(RocksOptions::default());
    let listener = seams.net.listen("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let node = Arc::new(Node {
        ready: Mutex::new(Err("no map yet".into())),
    });
    let stop = CancellationToken::new();
    let health: Arc<dyn Health> = Arc::clone(&node) as _;
    let served = serve(
        seams.clone(),
        listener,
        health,
        Metrics::install(),
        stop.clone().cancelled_owned(),
    );
    let client = async {
        assert!(
            ask(&seams, address, "/livez")
                .await
                .starts_with("HTTP/1.1 200")
        );
        let answer = ask(&seams, address, "/readyz").await;
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.contains("no map yet"),
            "{answer}"
        );
        *node.ready.lock() = Ok(());
        assert!(
            ask(&seams, address, "/readyz")
                .await
                .starts_with("HTTP/1.1 200")
        );
        let answer = ask(&seams, address, "/metrics").await;
        assert!(answer.contains("engram_http_test 7"), "{answer}");
        assert!(
            ask(&seams, address, "/else")
                .await
                .starts_with("HTTP/1.1 404")
        );
        stop.cancel();
    };
    tokio::join!(served, client);
}
