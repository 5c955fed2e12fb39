package dev.pidone.peers;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.lang.management.ManagementFactory;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReference;

import com.netflix.appinfo.EurekaClientIdentity;
import com.netflix.appinfo.InstanceInfo;
import com.netflix.appinfo.InstanceInfo.InstanceStatus;
import com.netflix.appinfo.MyDataCenterInstanceConfig;
import com.netflix.appinfo.providers.EurekaConfigBasedInstanceInfoProvider;
import com.netflix.discovery.DefaultEurekaClientConfig;
import com.netflix.discovery.shared.resolver.DefaultEndpoint;
import com.netflix.discovery.shared.transport.EurekaHttpClient;
import com.netflix.discovery.shared.transport.jersey.JerseyEurekaHttpClientFactory;

/** Heartbeats by the official client: the server's URL, the application, and the ids of instances that it has. */
public final class Bench {
    private static final int IN_FLIGHT = 10;

    /** One heartbeat for the instance of that number. It throws if the registry does not renew. */
    private interface Beat {
        void send(int number) throws Exception;
    }

    public static void main(String[] arguments) throws Exception {
        InstanceInfo self = new EurekaConfigBasedInstanceInfoProvider(new MyDataCenterInstanceConfig()).get();
        JerseyEurekaHttpClientFactory factory = JerseyEurekaHttpClientFactory.create(
            new DefaultEurekaClientConfig(), List.of(), self, new EurekaClientIdentity(self.getIPAddr()));
        EurekaHttpClient client = factory.newClient(new DefaultEndpoint(arguments[0]));
        String app = arguments[1];
        List<InstanceInfo> instances = new ArrayList<>();
        for (int number = 2; number < arguments.length; number++) {
            instances.add(InstanceInfo.Builder.newBuilder()
                .setAppName(app)
                .setInstanceId(arguments[number])
                .setLastDirtyTimestamp(1L)  // a newer one than the server has is answered with 404
                .build());
        }
        serve(instances.size(), number -> {
            InstanceInfo instance = instances.get(number);
            int status = client.sendHeartBeat(app, instance.getId(), instance, InstanceStatus.UP).getStatusCode();
            if (status != 200) {
                throw new IllegalStateException("a heartbeat is answered with " + status);
            }
        });
    }

    /** Answers each line of the input, which is a number of seconds, with the heartbeats sent in them and their cost. */
    private static void serve(int instances, Beat beat) throws Exception {
        com.sun.management.OperatingSystemMXBean system =
            (com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            long began = System.nanoTime();
            long until = began + (long) (Double.parseDouble(line) * 1e9);
            long before = system.getProcessCpuTime();
            AtomicLong beats = new AtomicLong();
            AtomicReference<Exception> failure = new AtomicReference<>();
            List<Thread> threads = new ArrayList<>();
            for (int thread = 0; thread < IN_FLIGHT; thread++) {
                int first = thread;
                threads.add(new Thread(() -> {
                    try {
                        for (int number = first; System.nanoTime() < until; number += IN_FLIGHT) {
                            beat.send(number % instances);
                            beats.incrementAndGet();
                        }
                    } catch (Exception error) {
                        failure.set(error);
                    }
                }));
            }
            for (Thread thread : threads) {
                thread.start();
            }
            for (Thread thread : threads) {
                thread.join();
            }
            if (failure.get() != null) {
                throw failure.get();
            }
            System.out.printf(Locale.ROOT, "= {\"beats\": %d, \"cpu\": %.6f, \"wall\": %.6f}%n", beats.get(),
                (system.getProcessCpuTime() - before) / 1e9, (System.nanoTime() - began) / 1e9);
        }
        Runtime.getRuntime().halt(0);
    }
}
