// The playground: GraphiQL on this gateway, with questions to begin with.
const questions = [
  `# All clusters, hosts and GPUs. Ctrl-Enter runs it; the docs are at the left.
query Inventory {
  clusters { id name totalHosts totalGpus updatedAt hosts(limit: 3) { hostname status gpus { id uuid name status } } }
}
`,
  `# The newest values of ten GPUs.
query Latest {
  gpus(limit: 10) { id hostname name latest { timestamp gpuUtilization memoryUtilization temperature powerDraw } }
}
`,
  `# What was measured on three GPUs, page by page.
query Telemetry {
  gpusConnection(first: 3) {
    totalCount
    pageInfo { hasNextPage endCursor }
    edges { cursor node { uuid telemetry(limit: 4) { timestamp gpuUtilization temperature powerDraw customMetrics } } }
  }
}
`,
  `# What the pipeline holds, and what it reads.
query Pipeline {
  pipeline { revision samplesAccepted samplesQueued samplesStored rowsRejected blocks bytesStored }
  sources { id state path shards shardsDone samples }
}
`,
  `# New values as they come. Running it begins, running it again ends it.
subscription Live {
  telemetryUpdates(metrics: ["gpu_utilization", "temperature", "power_draw"]) {
    timestamp hostname gpuId gpuUtilization temperature powerDraw
  }
}
`,
];
const socket = new URL("/graphql/ws", location.href);
socket.protocol = location.protocol === "https:" ? "wss:" : "ws:";
const fetcher = GraphiQL.createFetcher({ url: "/graphql", subscriptionUrl: socket.href });
ReactDOM.createRoot(document.getElementById("graphiql")).render(
  React.createElement(GraphiQL, {
    fetcher,
    defaultTabs: questions.map((query) => ({ query })),
    defaultEditorToolsVisibility: false,
    isHeadersEditorEnabled: true,
    shouldPersistHeaders: false,
  }),
);
