//! Builds the parts, starts them, and watches that none ends. Holds no policy.

use crate::{
    capsule::{clerk::Clerk, create::Creation, destroy::Destruction, lookup::Lookup},
    config::Config,
    error::PoolManagerError,
    grpc::service::Service,
    host::{
        Host, Link, client::Agent, compare::Comparison, held::Holds, reaper, restore::Restorer,
        stranger::Strangers, watch::Watch,
    },
    lease::Leases,
    metrics,
    owners::Owners,
    pool::{
        Pools,
        demand::Demand,
        take::{LeaseLimits, Taker},
        warm::{self, Surroundings},
    },
    store::{Store, writer::Writer},
    template::{alias, catalogue::Catalogue, ensure::Ensure},
};
use hearth_proto::id::CapsuleId;
use hearth_proto::wire::pool::pool_manager_server::PoolManagerServer;
use hearth_service::{rpc, shutdown::Shutdown, socket};
use std::{collections::HashSet, future::Future, path::PathBuf, sync::Arc, time::Duration};
use tokio::{net::UnixListener, sync::watch as level, task::JoinSet};
use tonic::{service::Routes, transport::Server};

/// The service; see [`PoolManager::start`].
#[derive(Debug)]
pub struct PoolManager;

/// A started pool-manager. Its tasks run on the shutdown's tracker; dropping this value stops nothing.
#[derive(Debug)]
pub struct Running {
    socket: PathBuf,
    ended: level::Receiver<Option<&'static str>>,
    clerk: Clerk,
    shutdown: Shutdown,
}

impl Running {
    /// Users' capsules that should be on a host. None when the shutdown has begun: nobody knows any more.
    pub async fn users(&self) -> Option<HashSet<CapsuleId>> {
        self.clerk.users().await.ok()
    }

    /// The endpoint it serves on, `unix:/path`.
    pub fn endpoint(&self) -> String {
        socket::endpoint(&self.socket)
    }

    /// Resolves when the shutdown has begun, or with an error as soon as a part ended that must not: nothing works
    /// right without it, so the process should end. Cancel safe.
    ///
    /// # Errors
    /// The part that ended.
    pub async fn ended(&mut self) -> Result<(), PoolManagerError> {
        let stop = self.shutdown.token();
        tokio::select! {
            // Parts end because of a shutdown too; that is no failure.
            biased;
            () = stop.cancelled() => Ok(()),
            ended = self.ended.wait_for(Option::is_some) => match ended.ok().and_then(|part| *part) {
                Some(part) => Err(PoolManagerError::PartEnded(part)),
                None => Ok(()),
            },
        }
    }
}

impl PoolManager {
    /// Waits for the database, binds the socket and starts serving; then returns. The host's agent may come up later.
    /// All tasks are spawned on `shutdown`, and end when it begins: parked capsules stay on their host for the next
    /// start, changes of state are written.
    ///
    /// # Errors
    /// When the settings are wrong, the database does not come up in time, or the socket cannot be bound.
    pub async fn start(config: Config, shutdown: Shutdown) -> Result<Running, PoolManagerError> {
        config.check()?;
        metrics::describe();
        let agent = Agent::new(&config.agent_endpoint())?;
        let wait = Duration::from_secs(config.database_wait_sec);
        let store = shutdown
            .token()
            .run_until_cancelled(Store::connect(&config.database_url, wait))
            .await
            .ok_or(PoolManagerError::Stopped)??;
        let records = store.active().await.map_err(|error| PoolManagerError::Load(Box::new(error)))?;
        let path = config.socket();
        let listener =
            socket::bind(&path).map_err(|source| PoolManagerError::Socket { path: path.clone(), source })?;

        let mut parts = Parts { tasks: JoinSet::new() };
        let service = parts.build(&config, agent, store, records, &shutdown);
        let clerk = service.owners.clerk.clone();
        parts.start("server", serve(listener, service, shutdown.clone()));
        let ended = parts.supervise(&shutdown);
        tracing::info!(socket = %path.display(), "pool-manager serves");
        Ok(Running { socket: path, ended, clerk, shutdown })
    }
}

async fn serve(listener: UnixListener, service: Service, shutdown: Shutdown) {
    let service = PoolManagerServer::new(service)
        .max_decoding_message_size(socket::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(socket::MESSAGE_BYTES_MAX);
    let served = rpc::serve(Server::builder(), Routes::new(service), listener, shutdown.token()).await;
    if let Err(error) = served {
        tracing::error!(%error, "the server ended");
    }
}

/// The tasks that must run as long as the service. Each returns its name.
struct Parts {
    tasks: JoinSet<&'static str>,
}

impl Parts {
    fn start(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(async move {
            task.await;
            name
        });
    }

    /// Builds the parts from left to right, and starts their tasks.
    fn build(
        &mut self,
        config: &Config,
        agent: Agent,
        store: Store,
        records: Vec<crate::capsule::Record>,
        shutdown: &Shutdown,
    ) -> Service {
        let wanted = alias::canonical(&config.template).to_owned();
        let (link, linked) =
            level::channel(Link::Away { reason: "its agent was not reached yet".to_owned() });
        let (catalogue, catalogued) = level::channel(Arc::new(Catalogue::new(&wanted)));
        let host =
            Host { agent: agent.clone(), endpoint: config.agent_endpoint().as_str().into(), link: linked };

        let (writer, task) = Writer::new(store.clone(), shutdown.clone());
        self.start("writer", task.run());
        let (holds, queue) = Holds::new(shutdown.token());
        self.start("reaper", reaper::run(queue, holds.clone(), agent.clone(), shutdown.clone()));
        let (leases, task) = Leases::new(shutdown.clone());
        self.start("leases", task.run());
        let (clerk, task) = Clerk::new(records, writer.clone(), holds.clone(), shutdown.clone());
        self.start("clerk", task.run());

        let restorer = Restorer { agent: agent.clone(), holds: holds.clone() };
        let demand = Demand::new(restorer.clone(), config.restores(), config.take_wait(), shutdown.clone());
        let around = Surroundings {
            link: host.link.clone(),
            catalogue: catalogued.clone(),
            demand: demand.level(),
            shutdown: shutdown.clone(),
        };
        let (pool, task) = warm::Keeper::new(&wanted, config.target, config.refills, restorer, around);
        self.start("pool", task.run());

        let owners =
            Owners { pools: Pools::new([(wanted.clone(), pool)]), leases, clerk, holds: holds.clone() };
        self.start(
            "templates",
            Ensure {
                wanted,
                agent: agent.clone(),
                link: host.link.clone(),
                catalogue,
                writer: writer.clone(),
                shutdown: shutdown.clone(),
            }
            .run(),
        );
        let comparison = Comparison {
            agent,
            owners: owners.clone(),
            store: store.clone(),
            lease_max: config.lease_max(),
            strangers: Strangers::default(),
        };
        let endpoint = Arc::clone(&host.endpoint);
        let watch = Watch { endpoint, comparison, link, writer: writer.clone(), shutdown: shutdown.clone() };
        self.start("watch", watch.run());

        let limits = LeaseLimits { default: config.lease_default(), most: config.lease_max() };
        let taker = Taker {
            host,
            catalogue: catalogued,
            pools: owners.pools.clone(),
            demand,
            leases: owners.leases.clone(),
            limits,
        };
        service(taker, owners, store, writer, shutdown)
    }

    /// Ends the parts' common life: the first that ends without a shutdown is told to whoever runs this service.
    fn supervise(mut self, shutdown: &Shutdown) -> level::Receiver<Option<&'static str>> {
        let (ended, receiver) = level::channel(None);
        let stop = shutdown.token();
        shutdown.tasks().spawn(async move {
            while let Some(part) = self.tasks.join_next().await {
                if stop.is_cancelled() {
                    continue;
                }
                let name = part.unwrap_or_else(|panic| {
                    tracing::error!(%panic, "a part panicked");
                    "part that panicked"
                });
                tracing::error!(part = name, "a part ended that must not");
                ended.send_replace(Some(name));
            }
        });
        receiver
    }
}

fn service(taker: Taker, owners: Owners, store: Store, writer: Writer, shutdown: &Shutdown) -> Service {
    let (host, clerk) = (taker.host.clone(), owners.clerk.clone());
    Service {
        creation: Creation {
            taker: taker.clone(),
            store: store.clone(),
            clerk: clerk.clone(),
            writer,
            shutdown: shutdown.clone(),
        },
        destruction: Destruction {
            agent: host.agent.clone(),
            store: store.clone(),
            clerk: clerk.clone(),
            shutdown: shutdown.clone(),
        },
        lookup: Lookup { host, store, clerk },
        taker,
        owners,
    }
}
