// A steady load: many browsers, each on a connection that it keeps, together at a constant rate of reports.
//
//   BASE_URL=http://localhost:8080   the server
//   RATE=1000                        reports a second, all browsers together
//   DURATION=30s
//   VUS=1000                         browsers; they take turns
//   P95_MS=50 P99_MS=200             the limits for report_time

import { report, send } from './reports.js';

const VUS = Number(__ENV.VUS || 1000);

export const options = {
  scenarios: {
    steady: {
      // Open model: reports come at their time, however long the server takes for those before.
      executor: 'constant-arrival-rate',
      rate: Number(__ENV.RATE || 1000),
      timeUnit: '1s',
      duration: __ENV.DURATION || '30s',
      preAllocatedVUs: VUS,
      maxVUs: VUS,
    },
  },
  thresholds: {
    http_req_failed: ['rate==0'],
    checks: ['rate==1'],
    // Every browser was still waiting for an answer: the rate was not kept.
    dropped_iterations: ['count==0'],
    report_time: [`p(95)<${__ENV.P95_MS || 50}`, `p(99)<${__ENV.P99_MS || 200}`],
  },
  summaryTrendStats: ['med', 'p(95)', 'p(99)', 'max'],
};

export default function () {
  send(report(Date.now()));
}
