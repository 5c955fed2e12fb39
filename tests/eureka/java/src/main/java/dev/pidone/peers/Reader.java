package dev.pidone.peers;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

import com.fasterxml.jackson.databind.ObjectMapper;
import com.netflix.appinfo.ApplicationInfoManager;
import com.netflix.appinfo.EurekaClientIdentity;
import com.netflix.appinfo.InstanceInfo;
import com.netflix.appinfo.MyDataCenterInstanceConfig;
import com.netflix.appinfo.providers.EurekaConfigBasedInstanceInfoProvider;
import com.netflix.discovery.DefaultEurekaClientConfig;
import com.netflix.discovery.DiscoveryClient;
import com.netflix.discovery.shared.Application;
import com.netflix.discovery.shared.resolver.DefaultEndpoint;
import com.netflix.discovery.shared.transport.EurekaHttpClient;
import com.netflix.discovery.shared.transport.jersey.JerseyEurekaHttpClientFactory;

/**
 * The official client of each server that is an argument. Each line of the input is answered with a line of JSON, the
 * instances of an application by their ids. {@code NUMBER APP} asks the server of that number now; the answer is null if
 * it gives none. {@code NUMBER APP consumer} is what a DiscoveryClient has at present. It ends with its input.
 */
public final class Reader {
    public static void main(String[] urls) throws Exception {
        MyDataCenterInstanceConfig instance = new MyDataCenterInstanceConfig();
        InstanceInfo self = new EurekaConfigBasedInstanceInfoProvider(instance).get();
        ApplicationInfoManager manager = new ApplicationInfoManager(instance, self);
        JerseyEurekaHttpClientFactory factory = JerseyEurekaHttpClientFactory.create(
            new DefaultEurekaClientConfig(), List.of(), self, new EurekaClientIdentity(self.getIPAddr()));
        EurekaHttpClient[] clients = new EurekaHttpClient[urls.length];
        DiscoveryClient[] consumers = new DiscoveryClient[urls.length];
        for (int number = 0; number < urls.length; number++) {
            List<String> servers = List.of(urls[number]);
            clients[number] = factory.newClient(new DefaultEndpoint(urls[number]));
            consumers[number] = new DiscoveryClient(manager, new DefaultEurekaClientConfig() {
                @Override
                public List<String> getEurekaServerServiceUrls(String zone) {
                    return servers;
                }
            });
        }

        ObjectMapper json = new ObjectMapper();
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            String[] words = line.split(" ");
            int number = Integer.parseInt(words[0]);
            Object answer;
            try {
                answer = instances(words.length > 2
                    ? consumers[number].getApplication(words[1])
                    : clients[number].getApplication(words[1]).getEntity());
            } catch (RuntimeException error) {
                answer = null;
            }
            System.out.println(json.writeValueAsString(answer));
        }
        Runtime.getRuntime().halt(0);
    }

    private static Map<String, Object> instances(Application application) {
        Map<String, Object> instances = new TreeMap<>();
        if (application != null) {
            for (InstanceInfo found : application.getInstances()) {
                instances.put(found.getInstanceId(), read(found));
            }
        }
        return instances;
    }

    private static Map<String, Object> read(InstanceInfo found) {
        Map<String, Object> values = new LinkedHashMap<>();
        values.put("status", found.getStatus().name());
        values.put("overridden", found.getOverriddenStatus().name());
        values.put("ip", found.getIPAddr());
        values.put("port", found.isPortEnabled(InstanceInfo.PortType.UNSECURE) ? found.getPort() : null);
        values.put("securePort", found.isPortEnabled(InstanceInfo.PortType.SECURE) ? found.getSecurePort() : null);
        values.put("metadata", found.getMetadata());
        return values;
    }
}
