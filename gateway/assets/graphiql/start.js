// The playground: GraphiQL on this gateway, with questions to begin with.
const questions = [
  `# All clusters, hosts and GPUs.
# Ctrl-Enter runs it; the docs are at the left.
query Inventory {
  clusters {
    id
    totalHosts
    totalGpus
    updatedAt
    hosts(limit: 3) {
      hostname
      status
      gpus { id uuid name status }
    }
  }
}
`,
  `# The newest values of ten GPUs.
query Latest {
  gpus(limit: 10) {
    id
    hostname
    latest {
      timestamp
      gpuUtilization
      memoryUtilization
      temperature
      powerDraw
    }
  }
}
`,
  `# What was measured, page by page.
query Telemetry {
  gpusConnection(first: 3) {
    totalCount
    pageInfo { hasNextPage endCursor }
    edges {
      node {
        uuid
        telemetry(limit: 4) {
          timestamp
          gpuUtilization
          temperature
          customMetrics
        }
      }
    }
  }
}
`,
  `# What the pipeline holds and reads.
query Pipeline {
  pipeline {
    revision
    samplesAccepted
    samplesQueued
    samplesStored
    rowsRejected
    bytesStored
  }
  sources { id state path shards shardsDone samples }
}
`,
  `# New values as they come.
# Running it begins, running it again ends it.
subscription Live {
  telemetryUpdates(
    metrics: ["gpu_utilization", "temperature"]
  ) {
    timestamp
    hostname
    gpuId
    gpuUtilization
    temperature
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
