package dev.pidone.nacos;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.lang.management.ManagementFactory;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReference;

import com.alibaba.nacos.client.env.NacosClientProperties;
import com.alibaba.nacos.client.naming.core.NamingServerListManager;
import com.alibaba.nacos.client.naming.remote.http.NamingHttpClientManager;
import com.alibaba.nacos.client.naming.remote.http.NamingHttpClientProxy;
import com.alibaba.nacos.client.naming.utils.UtilAndComs;
import com.alibaba.nacos.client.security.SecurityProxy;

/** Beats by the HTTP part of the official client: HOST:PORT, user, password, GROUP@@SERVICE, and IP:PORT of instances. */
public final class Bench {
    private static final int IN_FLIGHT = 10;

    /** One heartbeat for the instance of that number. It throws if the registry does not renew. */
    private interface Beat {
        void send(int number) throws Exception;
    }

    public static void main(String[] arguments) throws Exception {
        Properties properties = new Properties();
        properties.setProperty("serverAddr", arguments[0]);
        properties.setProperty("username", arguments[1]);
        properties.setProperty("password", arguments[2]);
        NacosClientProperties settings = NacosClientProperties.PROTOTYPE.derive(properties);
        NamingServerListManager servers = new NamingServerListManager(settings, "public");
        servers.start();
        SecurityProxy security =
            new SecurityProxy(servers, NamingHttpClientManager.getInstance().getNacosRestTemplate());
        security.login(properties);
        NamingHttpClientProxy client = new NamingHttpClientProxy("public", security, servers, settings);
        List<Map<String, String>> instances = new ArrayList<>();
        for (int number = 4; number < arguments.length; number++) {
            String[] address = arguments[number].split(":");
            instances.add(Map.of("namespaceId", "public", "serviceName", arguments[3], "clusterName", "DEFAULT",
                "ip", address[0], "port", address[1]));
        }
        serve(instances.size(), number -> {
            // the call adds parameters to its map
            Map<String, String> parameters = new HashMap<>(instances.get(number));
            String answer = client.reqApi(UtilAndComs.nacosUrlBase + "/instance/beat", parameters, "PUT");
            if (!answer.contains("10200")) {
                throw new IllegalStateException("a beat is answered with " + answer);
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
