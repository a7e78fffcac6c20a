// A steady load: many browsers with keep-alive connections send reports at a constant total rate.
//
//   BASE_URL=http://localhost:8080   the server
//   RATE=1000                        reports per second of all browsers together
//   DURATION=30s                     duration of the test
//   VUS=1000                         number of browsers; they send in turn
//   P95_MS=50 P99_MS=200             limits for report_time

import { report, send } from './reports.js';

const VUS = Number(__ENV.VUS || 1000);

export const options = {
  scenarios: {
    steady: {
      // Open model: k6 sends each report on schedule, even if the server is slow to answer earlier reports.
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
    // An iteration is dropped if all browsers are waiting for an answer. Then k6 did not reach the rate.
    dropped_iterations: ['count==0'],
    report_time: [`p(95)<${__ENV.P95_MS || 50}`, `p(99)<${__ENV.P99_MS || 200}`],
  },
  summaryTrendStats: ['med', 'p(95)', 'p(99)', 'max'],
};

export default function () {
  send(report(Date.now()));
}
